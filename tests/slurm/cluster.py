"""A real Slurm cluster on this machine: nodes that have each a hostname, a network and fake GPUs of their own.

    with Cluster() as cluster:
        job = cluster.sbatch("--nodes=2", "--wrap=srun hostname")
        cluster.wait_for_state(job, "COMPLETED")

The nodes' cables meet in a switch in the controller's network namespace; one more cable leads to this machine, so that
Slurm's commands work here with `cluster.environment`. Files are shared by all. Nothing outlives the process that
started the cluster, also where that is killed.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tests.slurm.cluster_config import ClusterConfig
from tests.slurm.machine import Machine, command_lines

SCRIPTS = Path(__file__).parent
# A name, its value up to the next name: values may hold blanks and equal signs.
JOB_FIELD = re.compile(r"([A-Za-z][\w:/]*)=(.*?)(?= [A-Za-z][\w:/]*=|$)")
# Slurm itself takes no job out of these: it puts back only what was pre-empted or lost its node.
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}
LOG_LINES_IN_ERRORS = 15


def free_subnet() -> str:
    """Return the first three numbers of an address range that this machine uses nowhere.

    From 198.18.0.0/15, which is set aside for tests of networks (RFC 2544).
    """
    taken = subprocess.run(["ip", "-4", "route"], check=True, capture_output=True, text=True).stdout
    free = [f"198.18.{third}" for third in range(256) if f"198.18.{third}." not in taken]
    # Processes that start clusters at the same time take different ones.
    return free[os.getpid() % len(free)]


def last_lines(path: Path) -> str:
    """Return the end of a log, for an error's text."""
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join([f"the last lines of {path}:", *lines[-LOG_LINES_IN_ERRORS:]])


class Cluster:
    """A Slurm cluster with the partitions `debug` (the default) and `urgent`, whose jobs pre-empt the former's."""

    def __init__(self, num_nodes: int = 2) -> None:
        self.config = ClusterConfig(free_subnet(), num_nodes)
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        self.config.write(self.folder)
        self.interface = f"slurm{self.folder.name[-8:]}"  # 15 characters at most
        self.logs = self.folder / "logs"
        # The nodes' GPUs are made up: ranks are not to miss them.
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "DS_ACCELERATOR": "cpu"}
        self._nodes: dict[str, Machine] = {}
        self._controller: Machine | None = None
        self.pid_namespaces: set[str] = set()

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def controller(self) -> Machine:
        """The machine with munged, slurmctld and the switch."""
        assert self._controller is not None, "the cluster was not started"
        return self._controller

    def start(self) -> None:
        """Start the controller and the nodes; return when all nodes are idle."""
        self._controller = Machine(
            SCRIPTS / "controller.sh",
            str(self.folder),
            self.config.subnet,
            log=self.logs / "controller.log",
            environment=self.environment,
            end_signal="TERM",
        )
        self.pid_namespaces.add(self.controller.pid_namespace)
        own = ["ip", "link", "add", self.interface, "type", "veth", "peer", "name", "outside"]
        subprocess.run([*own, "netns", str(self.controller.pid)], check=True)
        self.controller.ip("link", "set", "outside", "master", "switch", "up")
        subprocess.run(["ip", "address", "add", f"{self.config.subnet}.253/24", "dev", self.interface], check=True)
        subprocess.run(["ip", "link", "set", self.interface, "up"], check=True)
        for name in self.config.addresses:
            self._boot(name)
        for name in self.config.addresses:
            self._wait_for_node(name)

    def stop(self) -> None:
        """End all processes and remove the network and the folder."""
        for machine in [*self._nodes.values(), *([self._controller] if self._controller else [])]:
            machine.kill()
        subprocess.run(["ip", "link", "delete", self.interface], check=False, capture_output=True)
        self.wait_until(lambda: not self.pids(), "the end of all processes", timeout_s=20)
        if self.folder.exists():  # the controller had ended before
            shutil.rmtree(self.folder)

    def run(self, *command: str, timeout_s: float = 60, check: bool = True) -> str:
        """Return what `command` prints; it runs on this machine, with the cluster's Slurm.

        Raises: RuntimeError if it fails and `check` is set, or is not done after `timeout_s`.
        """
        return self._run(command, self.environment, self.folder / "jobs", timeout_s, check)

    def sbatch(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
        """Return the id of a new batch job. env: variables on top of `environment`; cwd: None is `folder`/jobs."""
        command = ("sbatch", "--parsable", *arguments)
        return int(self._run(command, {**self.environment, **(env or {})}, cwd or self.folder / "jobs"))

    def _run(
        self, command: tuple[str, ...], env: dict[str, str], cwd: Path, timeout_s: float = 60, check: bool = True
    ) -> str:
        try:
            outcome = subprocess.run(command, env=env, cwd=cwd, timeout=timeout_s, capture_output=True, text=True)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{' '.join(command)}: not done after {timeout_s} s\n{self.log_tail()}") from error
        if check and outcome.returncode != 0:
            said = f"{outcome.stdout}{outcome.stderr}".strip()
            raise RuntimeError(f"{' '.join(command)}: exit {outcome.returncode}\n{said}\n{self.log_tail()}")
        return outcome.stdout

    def job(self, job_id: int) -> dict[str, str]:
        """Return the fields of `scontrol show job`, also of a job that has ended."""
        return dict(JOB_FIELD.findall(self.run("scontrol", "show", "job", "-o", str(job_id)).strip()))

    def state(self, job_id: int) -> str:
        """Return PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, ..."""
        return self.job(job_id)["JobState"]

    def wait_for_state(self, job_id: int, *states: str, timeout_s: float = 60) -> str:
        """Return the first of `states` that the job is seen in.

        Raises: RuntimeError with the end of the job's output after `timeout_s`, at once where the job ended otherwise.
        """
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = self.state(job_id)
            if seen in FINAL_STATES.difference(states):
                raise RuntimeError(f"waited for it to be {' or '.join(states)}")
            return seen in states

        try:
            self.wait_until(is_there, f"it to be {' or '.join(states)}", timeout_s)
        except RuntimeError as error:
            output = Path(self.job(job_id).get("StdOut", os.devnull))
            said = last_lines(output) if output.exists() else "it wrote nothing"
            raise RuntimeError(f"job {job_id} is {seen}: {error}\n{said}") from error
        return seen

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Return when `condition` holds.

        Raises: RuntimeError with `what` and the last lines of slurmctld's log after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {timeout_s} s for {what}\n{self.log_tail()}")
            time.sleep(0.05)

    def kill_node(self, name: str) -> None:
        """Take away a node's power, and tell Slurm, which puts its jobs back into the queue at once."""
        node = self._nodes.pop(name)
        node.kill()
        self.wait_until(lambda: not command_lines({node.pid_namespace}), f"the end of {name}", timeout_s=20)
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed by the test")

    def start_node(self, name: str) -> None:
        """Switch a killed node on again; return when jobs can run there."""
        self._boot(name)
        self._wait_for_node(name)

    def pull_cable(self, name: str) -> None:
        """Cut a node off from the network; its processes live on."""
        self.controller.ip("link", "set", name, "down")

    def plug_cable(self, name: str) -> None:
        """Undo `pull_cable`, and have SLURM use the node at once, which else comes back after half a minute."""
        self.controller.ip("link", "set", name, "up")
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)

    def pids(self) -> dict[int, str]:
        """Return the command line of each process of the cluster, daemons and jobs, by its id on this machine."""
        return command_lines(self.pid_namespaces)

    def job_pids(self) -> dict[int, str]:
        """Return the same of the jobs only, slurmstepd with them: empty once no job has a process anywhere."""
        nodes = command_lines({node.pid_namespace for node in self._nodes.values()})
        return {pid: line for pid, line in nodes.items() if "/node.sh " not in line and not line.startswith("slurmd ")}

    def slow_down(self, pid: int, timeout_s: float = 120) -> None:
        """Let a process run a tenth of the time until it has ended. Raises: RuntimeError as `wait_until` does."""

        def has_ended() -> bool:
            try:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.9)
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return True
            return False

        self.wait_until(has_ended, f"the end of process {pid}", timeout_s)

    def cancel_all(self) -> None:
        """Cancel all jobs; return when none is left in the queue."""

        def is_empty() -> bool:
            # Again and again: a job may put itself back when it is told to end.
            queued = set(self.run("squeue", "--noheader", "--format=%A").split())
            if queued:
                self.run("scancel", *queued, check=False)
            return not queued

        self.wait_until(is_empty, "an empty queue")

    def reset(self) -> None:
        """Make the cluster as it was after its start: no job, all nodes up and connected."""
        for name in self._nodes:
            self.plug_cable(name)
        for name in self.config.addresses.keys() - self._nodes.keys():
            self.start_node(name)
        self.cancel_all()

    def log_tail(self) -> str:
        """Return the end of slurmctld's log; of the controller's where slurmctld never ran."""
        logs = [self.logs / "slurmctld.log", self.logs / "controller.log"]
        log = next((path for path in logs if path.exists()), None)
        if log is None:
            return f"{self.logs} holds no log"
        return last_lines(log)

    def _boot(self, name: str) -> None:
        address = self.config.addresses[name]
        node = Machine(
            SCRIPTS / "node.sh",
            str(self.folder),
            name,
            address,
            log=self.logs / f"{name}.shell.log",
            environment=self.environment,
            end_signal="KILL",
        )
        self._nodes[name] = node
        self.pid_namespaces.add(node.pid_namespace)
        # A killed node's cable goes some time after it.
        self.controller.ip("link", "delete", name, check=False)
        # The same hardware address at each boot: the others remember it, and what they send to another one is lost.
        hardware = ":".join(["02", "00", *(f"{int(number):02x}" for number in address.split("."))])
        end = ("peer", "name", "eth0", "address", hardware, "netns", str(node.pid))
        self.controller.ip("link", "add", name, "type", "veth", *end)
        self.controller.ip("link", "set", name, "master", "switch", "up")
        node.answer()

    def _wait_for_node(self, name: str) -> None:
        def is_up() -> bool:
            return self.run("sinfo", "--noheader", f"--nodes={name}", "--format=%T", check=False).split()[:1] == [
                "idle"
            ]

        self.wait_until(is_up, f"{name} to be idle", timeout_s=30)
