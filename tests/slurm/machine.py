"""A machine of the test cluster: a shell in namespaces of its own, and all that it starts."""

import subprocess
from pathlib import Path


class Machine:
    """A shell script that is pid 1 of its own network, hostname, mounts, shared memory and process ids.

    It dies with the thread that made it, and then by `end_signal`; what it started dies with it.
    """

    def __init__(self, script: Path, *arguments: str, log: Path, environment: dict[str, str], end_signal: str) -> None:
        namespaces = ["--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--mount-proc"]
        # The kernel sends KILL to unshare when its parent dies, and `end_signal` to the script when unshare does.
        die_with_parent = ["setpriv", "--pdeathsig", "KILL", "unshare", f"--kill-child={end_signal}"]
        with log.open("ab") as log_file:
            self._process = subprocess.Popen(
                [*die_with_parent, *namespaces, "bash", str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=environment,
                cwd="/",
                start_new_session=True,
                text=True,
            )
        assert self._process.stdout is not None
        with self._process.stdout:
            if self._process.stdout.readline() != "ready\n":
                self.kill()
                raise RuntimeError(f"{script.name} {' '.join(arguments)} did not start:\n{log.read_text()}")
        self.pid_namespace = str(Path(f"/proc/{self.pid}/ns/pid_for_children").readlink())

    @property
    def pid(self) -> int:
        """The process whose network namespace is the machine's."""
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether the machine's first process is there."""
        return self._process.poll() is None

    def answer(self) -> None:
        """Send the script the line that it waits for."""
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write("\n")

    def ip(self, *arguments: str, check: bool = True) -> None:
        """Run `ip` in the machine's network namespace."""
        subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "ip", *arguments], check=check, capture_output=not check
        )

    def kill(self) -> None:
        """Send the script its `end_signal`; what it started may live a few milliseconds longer."""
        self._process.kill()
        self._process.wait()


def command_lines(pid_namespaces: set[str]) -> dict[int, str]:
    """Return the command line of each process in these namespaces by its process id as this machine sees it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str((folder / "ns" / "pid").readlink()) in pid_namespaces:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found[int(folder.name)] = " ".join(words).strip()
        except OSError:  # it ended meanwhile, or is a zombie
            continue
    return found
