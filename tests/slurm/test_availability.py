"""Where there can be no cluster, the tests say why; where packages are missing, they come without their daemons."""

import subprocess
from pathlib import Path

import pytest

from tests.slurm import availability
from tests.slurm.availability import install_packages, unavailable_reason
from tests.slurm.conftest import skip_or_fail

# They start no cluster, so they run wherever the tests do.


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert unavailable_reason() == "a Slurm cluster for tests needs Linux, this is darwin"


def test_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    reason = unavailable_reason()
    assert reason is not None
    assert "needs root" in reason


def test_missing_packages_come_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "machine_reason", lambda: None)
    monkeypatch.setattr("shutil.which", lambda command: None if command == "slurmd" else command)
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


@pytest.mark.parametrize("was_there", [False, True])
def test_no_daemon_may_start_while_packages_are_installed(
    was_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    if was_there:
        policy.write_text("the machine's own")
    policies, commands = [], []

    def apt(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        policies.append(policy.read_text())
        commands.append(command[1])
        return subprocess.CompletedProcess(command, returncode=100 if len(commands) == 1 else 0, stdout="", stderr="")

    monkeypatch.setattr(availability, "DAEMON_POLICY", policy)
    monkeypatch.setattr("shutil.which", lambda command: command)
    monkeypatch.setattr("subprocess.run", apt)
    install_packages()
    assert commands == ["install", "update", "install"]
    assert set(policies) == {"the machine's own" if was_there else "#!/bin/sh\nexit 101\n"}
    assert policy.exists() == was_there
