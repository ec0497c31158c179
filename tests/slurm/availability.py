"""Whether a cluster can be started here, and the packages that it takes."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.apt import INSTALL, install

# The Debian package of each command.
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
}
DAEMON_POLICY = Path("/usr/sbin/policy-rc.d")


def unavailable_reason() -> str | None:
    """Return why no cluster can be started on this machine. None: one can."""
    return machine_reason() or packages_reason()


def machine_reason() -> str | None:
    """Return what the machine lacks that no package brings."""
    if sys.platform != "linux":
        return f"a Slurm cluster for tests needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "a Slurm cluster for tests needs root: it gives each node a network of its own"
    probe = ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "true"]
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        return "a Slurm cluster for tests needs unshare and setpriv (util-linux)"
    outcome = subprocess.run(probe, capture_output=True, text=True, timeout=20)
    if outcome.returncode != 0:
        return f"a Slurm cluster for tests needs namespaces, which are refused here: {outcome.stderr.strip()}"
    return None


def packages_reason() -> str | None:
    """Return which commands are not installed, with the line that installs them."""
    missing = [command for command in PACKAGES if not shutil.which(command)]
    if not missing:
        return None
    return f"a Slurm cluster for tests needs {', '.join(missing)}: {' '.join([*INSTALL, *PACKAGES.values()])}"


def install_packages() -> None:
    """Install what is missing, where apt-get can; no daemon of the packages is started now.

    Under systemd munge alone would start with the next boot: slurmctld and slurmd want a slurm.conf in /etc.

    Raises: RuntimeError with apt-get's last words.
    """
    if not shutil.which("apt-get"):
        return
    is_ours = not DAEMON_POLICY.exists()
    if is_ours:  # what invoke-rc.d asks before it starts a daemon; 101 forbids
        with tempfile.NamedTemporaryFile("w", dir=DAEMON_POLICY.parent, delete=False) as policy:
            policy.write("#!/bin/sh\nexit 101\n")
        Path(policy.name).chmod(0o755)
        Path(policy.name).rename(DAEMON_POLICY)
    try:
        install(list(PACKAGES.values()))
    finally:
        if is_ours:
            DAEMON_POLICY.unlink()
