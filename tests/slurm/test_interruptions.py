"""What is done to the scripts' jobs on a real cluster changes no weight."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.training import Training, assert_same

pytestmark = pytest.mark.slurm


def test_signals_and_pre_emption(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    job = disturbed.submit("train.sh", "configs/busi.yaml")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", f"--output={disturbed.run}/urgent.out")
    disturbances = (
        ("scancel", "--batch", "--signal=USR1", str(job)),  # to the script alone
        ("scancel", "--signal=TERM", str(job)),  # to all ranks
        ("scontrol", "requeue", str(job)),
        ("sbatch", *urgent),
    )
    for command in disturbances:
        disturbed.wait_for_steps(5)
        disturbed.wait_for_restart(job, partial(cluster.run, *command))
    disturbed.wait_for_steps(1)
    told = cluster.run(str(Path(sys.executable).parent / "sonoshard"), "status", str(disturbed.run))
    assert f"SLURM job {job} on n[1-2]: RUNNING" in told
    assert "requeued 4 times" in told
    disturbed.wait_for_end(job)
    assert len(disturbed.stops()) >= 3, "scontrol requeue may kill before all is saved"
    assert_same(disturbed, undisturbed)


def test_a_killed_rank_and_a_pulled_cable(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    job = disturbed.submit("train.sh", "configs/busi.yaml")
    disturbed.wait_for_steps(15)  # beyond a checkpoint, so that there is something to go on from
    disturbed.wait_for_restart(job, lambda: os.kill(disturbed.rank_pid(), signal.SIGKILL))
    disturbed.wait_for_steps(15)
    cluster.pull_cable("n2")
    # SLURM misses the node, or the ranks each other, whichever is first.
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "2", "the job to be queued again", 180)
    cluster.plug_cable("n2")
    disturbed.wait_for_log(", start 3")
    disturbed.wait_for_end(job)
    assert_same(disturbed, undisturbed)


def test_the_time_limit(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    # SLURM looks every 30 s whose time is up: the signal comes after 30 to 60 s of the two minutes. A rank is slowed
    # down until then, so that the run has not ended before on a fast machine; a slow one is told while it starts.
    job = disturbed.submit("train.sh", "configs/busi.yaml", options=("--nodes=2", "--time=2", "--signal=USR1@90"))
    disturbed.wait_for_steps(1)
    disturbed.wait_for_restart(job, lambda: cluster.slow_down(disturbed.rank_pid()))
    # Two minutes would be up again, time after time, on a slow machine.
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    disturbed.wait_for_end(job)
    assert disturbed.stops()
    assert_same(disturbed, undisturbed)


def test_a_dead_node(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    """The job goes on with one rank where it had two: the same samples, and the same weights to rounding."""
    job = disturbed.submit("train.sh", "configs/busi.yaml", options=("--nodes=1-2",))
    disturbed.wait_for_steps(15)
    disturbed.wait_for_restart(job, lambda: cluster.kill_node("n2"))
    disturbed.wait_for_end(job)
    cluster.start_node("n2")
    assert "on n1, start 2" in disturbed.log()
    assert [step["ids"] for step in disturbed.steps()] == [step["ids"] for step in undisturbed.steps()]
    # Sums over two ranks and over one differ in the last bit, which 8-bit states now and then round to another value.
    losses, expected = (np.array([step["loss"] for step in run.steps()]) for run in (disturbed, undisturbed))
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
