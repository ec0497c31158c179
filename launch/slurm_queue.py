"""What SLURM says of jobs, by `squeue`, where that is."""

import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

TIMEOUT_S = 5
# A controller has many users: of those who watch, each asks it so often at most.
SECONDS_BETWEEN_QUESTIONS = 30.0
# Id, state, expected start, time left and limit; the reason comes last, since it may hold anything.
_FORMAT = "%A|%T|%S|%L|%l|%r"
# The job runs or will run, by itself.
WAITING_STATES = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "RESV_DEL_HOLD"}
RUNNING_STATES = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT"}


@dataclass(frozen=True)
class QueuedJob:
    """A job as SLURM has it now. Times are as SLURM writes them: `2026-11-24T10:00:00`, `1-02:30:00`, `N/A`."""

    state: str
    reason: str
    start: str
    left: str
    limit: str


class SlurmQueue:
    """Asks `squeue` about jobs, and remembers the answer for a while."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._asked: frozenset[str] = frozenset()
        self._jobs: dict[str, QueuedJob] | None = None

    def jobs(self, ids: Collection[str]) -> dict[str, QueuedJob] | None:
        """Return the jobs that SLURM knows, of those in `ids`; None where nobody can be asked."""
        now = time.monotonic()
        if self._asked_at is None or now - self._asked_at >= SECONDS_BETWEEN_QUESTIONS or not self._asked >= set(ids):
            self._asked_at, self._asked = now, frozenset(ids)
            self._jobs = _ask(sorted(self._asked)) if ids else {}
        return self._jobs


def _ask(ids: list[str]) -> dict[str, QueuedJob] | None:
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "-h", "-t", "all", "-o", _FORMAT, "-j", ",".join(ids)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        # Of a single job that it has forgotten, squeue says so and fails; anything else is no answer.
        return {} if "Invalid job id" in answer.stderr else None
    jobs = {}
    for line in answer.stdout.splitlines():
        number, *fields = line.strip().split("|", 5)
        if len(fields) == 5:
            state, start, left, limit, reason = fields
            jobs[number] = QueuedJob(state, reason, start, left, limit)
    return jobs
