"""The scripts of slurm/ on a real cluster: they run as they are, and what is done to their jobs changes no weight."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.data.busi_fixture import write_busi
from tests.slurm.cluster import Cluster
from tests.slurm.training import CHECKOUT, NUM_STEPS, Training
from tests.tiny_random_model import write_tiny_random_model

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every node sees, with BUSI's layout and a base model in it."""
    made = Path(tempfile.mkdtemp(prefix="sonoshard-slurm-", dir="/tmp"))
    made.chmod(0o755)
    write_busi(made / "data", 12)
    write_tiny_random_model(made / "model")
    yield made
    shutil.rmtree(made)


def training(cluster: Cluster, folder: Path, name: str, *settings: str) -> Training:
    small = (
        f"model.base={folder}/model",
        "model.resolution=64",
        "prepare.validation_fraction=0.25",
        f"stages.0.steps={NUM_STEPS}",
        "checkpoint.save_every_steps=20",
        "preview.every_steps=null",
    )
    return Training(cluster, folder / "runs" / name, folder / "data", (*small, *settings))


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, folder: Path) -> Training:
    """What slurm/finetune_busi.sh makes of BUSI on two nodes, from the images to the model."""
    made = training(cluster, folder, "undisturbed")
    made.wait_for_end(made.submit("finetune_busi.sh"))
    return made


@pytest.fixture
def disturbed(cluster: Cluster, folder: Path, undisturbed: Training, request: pytest.FixtureRequest) -> Training:
    """The same run, not begun yet, on the same shards."""
    name = request.node.name.removeprefix("test_")
    return training(cluster, folder, name, f"shards={undisturbed.run}/shards")


def assert_same(disturbed: Training, undisturbed: Training) -> None:
    """Every sample was seen once and in the same order, and each weight is the same to the bit."""
    assert [step["ids"] for step in disturbed.steps()] == [step["ids"] for step in undisturbed.steps()]
    assert [step["loss"] for step in disturbed.steps()] == [step["loss"] for step in undisturbed.steps()]
    assert disturbed.weights() == undisturbed.weights()


def test_finetune_busi_leaves_a_model_and_the_code_that_made_it(undisturbed: Training) -> None:
    assert undisturbed.num_steps() == NUM_STEPS
    (code,) = (undisturbed.run / "code").iterdir()
    assert (code / "launch" / "train.py").read_bytes() == (CHECKOUT / "launch" / "train.py").read_bytes()
    assert undisturbed.record()["commit"] == (code / "COMMIT").read_text().strip()


def test_signals_and_pre_emption(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    job = disturbed.submit("train.sh", "configs/busi.yaml")
    for name in ("USR1", "TERM"):
        disturbed.wait_for_steps(25)
        disturbed.wait_for_restart(job, partial(cluster.run, "scancel", f"--signal={name}", str(job)))
    disturbed.wait_for_steps(25)
    disturbed.wait_for_restart(job, lambda: cluster.run("scontrol", "requeue", str(job)))
    disturbed.wait_for_steps(25)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    disturbed.wait_for_restart(job, lambda: cluster.sbatch(*urgent, f"--output={disturbed.run}/urgent.out"))
    disturbed.wait_for_end(job)
    assert_same(disturbed, undisturbed)


def test_a_killed_rank_and_a_pulled_cable(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    job = disturbed.submit("train.sh", "configs/busi.yaml")
    disturbed.wait_for_steps(45)  # beyond a checkpoint, so that there is something to go on from
    (rank, *_) = [pid for pid, line in cluster.pids().items() if "sonoshard train" in line and "srun" not in line]
    disturbed.wait_for_restart(job, lambda: os.kill(rank, signal.SIGKILL))
    disturbed.wait_for_steps(45)
    cluster.pull_cable("n2")
    # SLURM misses the node, or the ranks each other, whichever is first.
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "2", "the job to be queued again", 120)
    cluster.plug_cable("n2")
    disturbed.wait_for_log(", start 3")
    disturbed.wait_for_end(job)
    assert_same(disturbed, undisturbed)


def test_the_time_limit(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    # SLURM looks every 30 s whose time is up: the signal comes after 5 to 35 s of the one minute.
    job = disturbed.submit("train.sh", "configs/busi.yaml", options=("--nodes=2", "--time=1", "--signal=USR1@55"))
    disturbed.wait_for_log(", start 2")
    disturbed.wait_for_end(job)
    assert_same(disturbed, undisturbed)


def test_a_dead_node(cluster: Cluster, disturbed: Training, undisturbed: Training) -> None:
    """The job goes on with one rank where it had two: the same samples, and the same weights to rounding."""
    job = disturbed.submit("train.sh", "configs/busi.yaml", options=("--nodes=1-2",))
    disturbed.wait_for_steps(45)
    disturbed.wait_for_restart(job, lambda: cluster.kill_node("n2"))
    disturbed.wait_for_end(job)
    cluster.start_node("n2")
    assert "on n1, start 2" in disturbed.log()
    assert [step["ids"] for step in disturbed.steps()] == [step["ids"] for step in undisturbed.steps()]
    # Sums over two ranks and over one differ in the last bit, which 8-bit states now and then round to another value.
    losses, expected = (np.array([step["loss"] for step in run.steps()]) for run in (disturbed, undisturbed))
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
