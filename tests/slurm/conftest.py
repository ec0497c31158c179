"""The cluster that the tests of this folder share."""

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.slurm.availability import install_packages, machine_reason, packages_reason, unavailable_reason
from tests.slurm.cluster import Cluster


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test; where the variable CI says that nothing may be skipped, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes. Skips where there can be none, and fails there in CI."""
    if machine_reason() is None and packages_reason() is not None:
        install_packages()
    reason = unavailable_reason()
    if reason is not None:
        skip_or_fail(reason)
    with Cluster() as started:
        yield started


@pytest.fixture(autouse=True)
def reset_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the next test an idle cluster, whatever this one left."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").reset()
