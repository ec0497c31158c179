"""Runs that are submitted from Python, on a real cluster and on this machine."""

import re
from pathlib import Path
from typing import Any

import pytest
import submitit
from typer.testing import CliRunner

from launch.cli import app
from launch.submit import submit
from tests.slurm.cluster import Cluster
from tests.slurm.training import CHECKOUT, NUM_STEPS, STAGES, Training, assert_same, chain_of_stages

pytestmark = pytest.mark.slurm
CONFIG = CHECKOUT / "configs" / "busi.yaml"


@pytest.fixture(autouse=True)
def environment(cluster: Cluster, disturbed: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let submitit, whose commands run in this process's environment, find the cluster."""
    for name, value in (cluster.environment | disturbed.variables).items():
        monkeypatch.setenv(name, value)


def on_two_nodes(run: Training, *settings: str, chain: bool = False) -> list["submitit.Job[dict[str, Any]]"]:
    return submit(CONFIG, [*run.settings, *settings], nodes=2, gpus_per_node=0, time_min=10, chain=chain)


def test_a_chain_whose_first_job_is_interrupted(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    jobs = on_two_nodes(disturbed, chain_of_stages(), chain=True)
    ids = [int(job.job_id) for job in jobs]
    assert [cluster.job(later)["Dependency"].partition("(")[0] for later in ids[1:]] == [
        f"afterok:{earlier}" for earlier in ids[:-1]
    ]
    disturbed.wait_for_steps(15)
    jobs[0]._interrupt()  # TERM and USR2 to every task
    cluster.wait_until(lambda: cluster.job(ids[0])["Restarts"] == "1", "the job to be queued again")
    for number in ids:
        disturbed.wait_for_end(number)
    first, second = jobs[0].results()
    assert first == second
    assert first["run"] == str(disturbed.run)
    assert first["stages"]["busi"]["steps"] == NUM_STEPS
    assert Path(first["stages"]["busi"]["model"], "model_index.json").exists()
    assert [list(job.results()[0]["stages"]) for job in jobs] == [["busi"], ["busi", "two"], ["busi", "two", "three"]]
    assert_same(disturbed, undisturbed, STAGES)
    disturbed.assert_staged()


def test_a_cancelled_chain_leaves_nothing_waiting(
    cluster: Cluster, disturbed: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of each of two nodes, by the command; the GPUs are made up, and CUDA finds none."""
    # To sbatch these mean more than a script's lines, and less than what the command is told.
    for name, value in (("PARTITION", "urgent"), ("TIMELIMIT", "1"), ("GPUS_PER_NODE", "2")):
        monkeypatch.setenv(f"SBATCH_{name}", value)
    # Submitted from within a job: srun refuses both of the last ones together.
    for name, value in (("JOB_ID", "999"), ("NTASKS_PER_NODE", "1"), ("MEM_PER_CPU", "1"), ("MEM_PER_NODE", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = ("--nodes=2", "--gpus-per-node=1", "--partition=debug", "--time-min=10", "--chain", "--sbatch=nice=1")
    settings = (*disturbed.settings, chain_of_stages(), "stages.0.steps=1000")
    told = CliRunner().invoke(app, ["submit", str(CONFIG), *settings, *options])
    assert told.exit_code == 0, told.stderr
    jobs = [int(number) for number in re.findall(r"^job (\d+), its log: ", told.stdout, re.MULTILINE)]
    assert f"sonoshard status {disturbed.run}" in told.stdout
    disturbed.wait_for_steps(5)
    job = cluster.job(jobs[0])
    assert (job["Partition"], job["NumNodes"], job["TimeLimit"]) == ("debug", "2", "00:10:00")
    assert job["TresPerNode"].endswith("gpu:1")
    assert disturbed.num_ranks() == 2
    cluster.run("scancel", str(jobs[0]))
    cluster.wait_until(lambda: cluster.run("squeue", "--noheader") == "", "an empty queue")
    assert [cluster.state(number) for number in jobs] == ["CANCELLED"] * 3
    assert not cluster.job_pids()
