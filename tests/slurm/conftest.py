"""The cluster that the tests of this folder share."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.data.busi_fixture import write_busi
from tests.slurm.availability import install_packages, machine_reason, packages_reason, unavailable_reason
from tests.slurm.cluster import Cluster
from tests.slurm.training import CHECKOUT, Training, chain_of_stages, training
from tests.tiny_random_model import write_tiny_random_model


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test; where the variable CI says that nothing may be skipped, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes. Skips where there can be none, and fails there in CI."""
    with Path(__file__).open() as this_file:
        fcntl.flock(this_file, fcntl.LOCK_EX)  # tests may be shared out to two processes
        if machine_reason() is None and packages_reason() is not None:
            install_packages()
    reason = unavailable_reason()
    if reason is not None:
        skip_or_fail(reason)
    with Cluster() as started:
        yield started
        for known in (CHECKOUT / "slurm" / ".jobs").glob(f"{started.config.name}-*"):
            known.unlink()


@pytest.fixture(autouse=True)
def reset_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the next test an idle cluster, whatever this one left; no process of a job outlives its test."""
    yield
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        cluster.reset()
        cluster.wait_until(lambda: not cluster.job_pids(), "the end of the jobs' processes")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every node and all processes of these tests see, with BUSI's layout and a base model in it."""
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "slurm"
    found.mkdir(exist_ok=True)
    with made_once(found / "data") as is_to_make:
        if is_to_make:
            write_busi(found / "data", 12)
            write_tiny_random_model(found / "model")
    return found


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, folder: Path) -> Training:
    """What slurm/finetune_busi.sh makes of BUSI on two nodes, from the images to the model; and two stages after it."""
    found = training(cluster, folder, "undisturbed")
    with made_once(found.run) as is_to_make:
        if is_to_make:
            found.wait_for_end(found.submit("finetune_busi.sh", settings=[chain_of_stages()]))
    return found


@contextmanager
def made_once(made: Path) -> Iterator[bool]:
    """Yield True where no process of these tests has made this yet; whoever comes meanwhile waits."""
    done = made.with_name(f"{made.name}.made")
    done.parent.mkdir(exist_ok=True)
    with made.with_name(f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture
def disturbed(cluster: Cluster, folder: Path, undisturbed: Training, request: pytest.FixtureRequest) -> Training:
    """The same run, not begun yet, on the same shards."""
    name = request.node.name.removeprefix("test_")
    return training(cluster, folder, name, f"shards={undisturbed.run}/shards")
