"""Runs that are submitted to this machine; tests/slurm/test_submit.py submits to a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.config import load_config
from launch.errors import ConfigError
from launch.step_log import STEPS_FILE, read_steps
from launch.submit import submit, submit_and_tell

CHECKOUT = Path(__file__).parent.parent.parent
OPTIONS: dict[str, Any] = {
    "sbatch": [],
    "cluster": "local",
    "nodes": 1,
    "gpus_per_node": 1,
    "cpus_per_rank": 1,
    "time_min": 5,
    "partition": None,
    "chain": False,
}


def settings(prepared: Path, run: Path) -> list[str]:
    return [f"shards={load_config(prepared).shards_path}", f"run={run}", "preview.every_steps=null"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 2}, r"nodes=2, but local is this machine: take 1, or cluster slurm"),
        ({"cluster": "debug", "gpus_per_node": 2}, r"gpus_per_node=2, but debug runs in this process alone: take 1"),
        ({"cluster": "k8s"}, r"--cluster k8s: needed one of slurm, local, debug"),
        ({"sbatch": ["lab"]}, r"--sbatch lab is no KEY=VALUE, such as account=lab"),
        ({"cluster": "slurm"}, r"Submit from a login node, or take cluster local"),
        ({"gpus_per_node": 3}, r"batch.global_size=8"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_queued(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without srun
    with pytest.raises(ConfigError, match=message):
        submit_and_tell(prepared, settings(prepared, tmp_path / "run"), **OPTIONS | options)
    assert not list(tmp_path.glob("run/submitit/*"))


@pytest.mark.parametrize(
    ("cluster", "gpus_per_node", "on_gpu"),
    [("slurm", 1, True), ("slurm", 0, False), ("local", 1, True), ("local", 0, False), ("debug", 0, True)],
)
def test_settings_are_checked_for_where_the_ranks_will_be(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any, gpus_per_node: int, on_gpu: bool
) -> None:
    class Checked(Exception):
        pass

    def check(*_: object, on_gpu: bool, **__: object) -> None:
        raise Checked(on_gpu)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("launch.dry_run.check_run", check)
    with pytest.raises(Checked, match=f"{on_gpu}"):
        submit(prepared, cluster=cluster, gpus_per_node=gpus_per_node)


@pytest.mark.slow
def test_a_local_job_goes_on_when_its_time_is_up(prepared: Path, tmp_path: Path) -> None:
    """Two ranks; what submitit sends to each of them then is sent by hand."""
    run = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(prepared.read_text())
    overrides = [*settings(prepared, run), "stages.0.steps=60"]
    (job,) = submit(config, overrides, cluster="local", gpus_per_node=2, time_min=5)
    config.write_text("edited after it was submitted")
    steps = run / "stages" / "busi" / STEPS_FILE
    while not steps.exists() or len(read_steps(steps)) < 5:
        assert not job.done(), job.stderr()
        time.sleep(0.1)
    for rank in Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split():
        os.kill(int(rank), signal.SIGUSR2)
    first, second = job.results()
    assert first == second
    assert first["stages"]["busi"]["steps"] == 60
    assert "busi" in first["stages"]["busi"]["losses"]
    assert [step["step"] for step in read_steps(steps)] == list(range(1, 61))
    assert "resumed after step" in (job.stderr() or "")


@pytest.mark.slow
def test_the_sweep_of_the_documentation_runs(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "docs/sweep.py", str(prepared), *settings(prepared, tmp_path / "run"), "--cluster=local"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "validation loss busi" in line]
    assert [line.split(":")[0] for line in told] == ["learning rate 1e-05", "learning rate 2e-05"]
    assert told[0].split()[-1] != told[1].split()[-1]


@pytest.mark.slow
def test_debug_runs_here_and_leaves_signals_as_they_were(prepared: Path, tmp_path: Path) -> None:
    """In a process of its own, since DeepSpeed stays in the one that it came into."""
    program = (
        "import signal, sys\n"
        "from launch.submit import submit\n"
        "(job,) = submit(sys.argv[1], sys.argv[2:], cluster='debug')\n"
        "(summary,) = job.results()\n"
        "print(summary['stages']['busi']['steps'], signal.getsignal(signal.SIGINT).__name__)\n"
    )
    command = [sys.executable, "-c", program, str(prepared), *settings(prepared, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "20 default_int_handler"
