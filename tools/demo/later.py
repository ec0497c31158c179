"""The demo's last steps, made by a process of their own while the step before them is still judging.

Two networks that each have half of the cores take three quarters of the time of one after the other with all of them.

    python -m tools.demo.later OUT [--quick]
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.errors import EXIT_FAILED
from launch.freed_memory import keep_freed_memory
from launch.imports import uncollected_imports
from launch.quiet import quiet_libraries
from launch.spawn import PARENT, stop_with_parent
from launch.terminal import one_line_errors, tell_in_lines
from tools.demo.plan import demo_config, say

QUICK_FLAG = "--quick"
LOOK_EVERY_S = 0.2
GRACE_S = 5.0  # to take away what is half made


class Later:
    """A process that tells what it does into a file, until it is its turn."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._told = tempfile.NamedTemporaryFile(prefix="sonoshard-", suffix=".log")  # noqa: SIM115 - `end` closes it
        # A session of its own: Ctrl-C reaches it once, through `end`.
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._told, stderr=self._told, start_new_session=True
        )

    def tell(self) -> int:
        """Tell on stdout what it has told up to now, then the rest as it comes; return its exit code."""
        with Path(self._told.name).open(encoding="utf-8", errors="replace") as told:
            while True:
                has_ended = self._process.poll() is not None
                print(told.read(), end="", flush=True)
                if has_ended:
                    break
                time.sleep(LOOK_EVERY_S)
        code = int(self._process.returncode)
        if code < 0:
            print(f"sonoshard: the last steps were ended by {signal.Signals(-code).name}", file=sys.stderr)
            return EXIT_FAILED
        return code

    def end(self) -> None:
        """End it and what it has started, if it still runs."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_S)
        self._told.close()


@contextmanager
def later_steps(out: Path, *, quick: bool) -> Iterator[Later]:
    """Yield the last steps of a demo, which were begun; meanwhile half of the cores are for this process's networks."""
    import torch

    num_threads = torch.get_num_threads()
    half = max(1, num_threads // 2)
    environment = {**os.environ, "OMP_NUM_THREADS": str(half), "PYTHONUTF8": "1", PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "tools.demo.later", str(out), *([QUICK_FLAG] if quick else ())]
    later = Later(command, environment)
    try:
        torch.set_num_threads(half)
        yield later
    finally:
        torch.set_num_threads(num_threads)
        later.end()


def main(out: str, *flags: str) -> None:
    """Make and tell the last steps of the demo in a folder whose stages are all trained."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which comes when the demo itself is killed
    stop_with_parent()
    keep_freed_memory()
    quiet_libraries()
    tell_in_lines()
    with one_line_errors():
        _make(Path(out), quick=QUICK_FLAG in flags)


def _make(out: Path, *, quick: bool) -> None:
    with uncollected_imports():
        from evaluation.downstream.table import print_downstream
        from models.stable_diffusion import import_libraries
        from tools.demo.exported import draw_in_bare_environment, export_all
        from tools.demo.judgement import worth
        from tools.demo.merged import merged_stages
        from tools.merge.choice import print_table

        import_libraries()

    config = demo_config(out, quick=quick)
    say(7, "are they of use? classifiers with and without them, tested on new patients")
    for result in worth(config, quick=quick):
        print_downstream(result)
    say(8, "merge the stages, in shares chosen by their loss on every database")
    print_table(merged_stages(config))
    say(9, "export, and draw a labelled set where neither torch nor this project is installed")
    exported = export_all(config, config.stages[-1])
    draw_in_bare_environment(config, exported.bundle, quick=quick)


if __name__ == "__main__":
    main(*sys.argv[1:])
