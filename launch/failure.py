"""What a rank failed of: left in a file for the process that started it, which shows the cause first and whole.

The file is as torchrun wants it, whose summary ends with it too.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import NoReturn, Self

from launch.errors import EXIT_FAILED, EXIT_USER_ERROR

ERROR_FILE = "SONOSHARD_ERROR_FILE"
EXIT_CODE_FILE = "SONOSHARD_EXIT_CODE_FILE"
_ERROR_FILE_OF_TORCHRUN = "TORCHELASTIC_ERROR_FILE"

# What collectives say once another rank is gone: gloo's messages name its sources, NCCL's errors have these types.
_SIGNS_OF_A_LOST_RANK = ("gloo/transport", "DistBackendError", "DistNetworkError", "DistStoreError")


@dataclass(frozen=True)
class Failure:
    """How one rank failed.

    exit_code: negative where a signal ended it. message: its exception in one line. traceback: empty where it left
    none. failed_at: seconds of the clock.
    """

    rank: int
    exit_code: int
    message: str
    traceback: str
    failed_at: float
    is_of_lost_rank: bool

    @classmethod
    def read(cls, file: Path, rank: int, exit_code: int, ended_at: float) -> Self:
        """Return what `rank` left in `file`; where it left nothing, what its exit code says."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))["message"]
            message, trace = content["message"], content["extraInfo"]["py_callstack"]
            return cls(rank, exit_code, _one_line(message), trace, file.stat().st_mtime, _is_of_lost_rank(message))
        except (OSError, ValueError, KeyError):
            ending = f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
            return cls(rank, exit_code, ending, "", ended_at, is_of_lost_rank=False)

    def text(self, is_cause: bool) -> str:
        """Return the lines that tell of it: whole for the cause, one for a failure beside it."""
        if not is_cause:
            return f"sonoshard: rank {self.rank} failed too: {shorten(self.message, 200)}"
        return f"{self.traceback}sonoshard: rank {self.rank} failed first: {self.message}"


def cause_first(failures: Sequence[Failure]) -> list[Failure]:
    """Return `failures` with the one that the others followed from at the beginning.

    It is the earliest that is not about a lost rank: a rank that is killed leaves no file, and its death may be seen
    after its neighbours' errors.
    """
    return sorted(failures, key=lambda failure: (failure.is_of_lost_rank, failure.failed_at))


def tell_failure(error: BaseException, rank: int) -> None:
    """Leave `error` to the process that started this rank; where that is none of ours, tell it on stderr."""
    trace = "".join(traceback.format_exception(error))
    message = f"{type(error).__name__}: {error}"
    is_cause = not _is_of_lost_rank(message)
    # torchrun blames the earliest, in whole seconds: what only followed must not stand in the same second.
    timestamp = str(int(time.time()) + (0 if is_cause else 2))
    content = {"message": message, "extraInfo": {"py_callstack": trace, "timestamp": timestamp}}
    for variable in (ERROR_FILE, _ERROR_FILE_OF_TORCHRUN):
        if variable in os.environ:
            with suppress(OSError):
                Path(os.environ[variable]).write_text(json.dumps({"message": content}), encoding="utf-8")
                if variable == ERROR_FILE:
                    return
    print(f"sonoshard: rank {rank}: {trace if is_cause else _one_line(message)}", file=sys.stderr)


def leave_mistake(error: BaseException) -> bool:
    """Leave a person's mistake to the process that started this rank; return whether that is one of ours."""
    if ERROR_FILE not in os.environ:
        return False
    content = {"message": str(error), "extraInfo": {"py_callstack": ""}}
    with suppress(OSError):
        Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": content}), encoding="utf-8")
    return True


def _is_of_lost_rank(message: str) -> bool:
    return any(sign in message for sign in _SIGNS_OF_A_LOST_RANK)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def leave_exit_code(code: int) -> None:
    """Leave a failure's exit code to the job's script: srun tells that of a task which was stopped for it instead."""
    if file := os.environ.get(EXIT_CODE_FILE):
        with suppress(OSError), Path(file).open("x", encoding="utf-8") as opened:  # the first counts
            opened.write(f"{code}\n")


def end_at_once(code: int) -> NoReturn:
    """End this process as a kill would, but with an exit code: clean-up may wait for ranks that are gone.

    Nothing is lost by it: what is half-written is never read.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (EXIT_FAILED, EXIT_USER_ERROR):
        leave_exit_code(code)
    os._exit(code)
