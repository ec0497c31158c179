"""Where there can be no cluster, the tests say why."""

import pytest

from tests.slurm import availability
from tests.slurm.availability import unavailable_reason
from tests.slurm.conftest import skip_or_fail

# They start no cluster, so they run wherever the tests do.


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability.sys, "platform", "darwin")
    assert unavailable_reason() == "a Slurm cluster for tests needs Linux, this is darwin"


def test_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability.sys, "platform", "linux")
    monkeypatch.setattr(availability.os, "geteuid", lambda: 1000)
    reason = unavailable_reason()
    assert reason is not None
    assert "needs root" in reason


def test_missing_packages_come_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "machine_reason", lambda: None)
    monkeypatch.setattr(availability.shutil, "which", lambda command: None if command == "slurmd" else command)
    reason = unavailable_reason()
    assert reason is not None
    assert "needs slurmd: apt-get install" in reason


def test_it_skips_at_home_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no cluster"):
        skip_or_fail("no cluster")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no cluster"):
        skip_or_fail("no cluster")
