"""The demo's last steps, made by a process of their own while the step before them is still judging.

Two networks that each have half of the cores take three quarters of the time of one after the other with all of them.

    python -m tools.demo.later OUT [--quick]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.freed_memory import keep_freed_memory
from launch.quiet import quiet_libraries
from launch.spawn import PARENT, stop_with_parent
from launch.terminal import one_line_errors
from tools.demo.plan import demo_config, say

QUICK_FLAG = "--quick"
LOOK_EVERY_S = 0.2


class LaterSteps:
    """The process, and what it has told."""

    def __init__(self, process: subprocess.Popen[bytes], told: Path) -> None:
        self._process, self._told = process, told

    def tell(self) -> int:
        """Tell what it has told up to now, then the rest as it comes; return its exit code."""
        with self._told.open(encoding="utf-8") as told:
            while True:
                has_ended = self._process.poll() is not None
                print(told.read(), end="", flush=True)
                if has_ended:
                    return self._process.returncode
                time.sleep(LOOK_EVERY_S)

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def later_steps(out: Path, *, quick: bool) -> Iterator[LaterSteps]:
    """Yield the last steps of a demo, which were begun; meanwhile half of the cores are this process's."""
    import torch

    num_threads = torch.get_num_threads()
    half = max(1, num_threads // 2)
    environment = {**os.environ, "OMP_NUM_THREADS": str(half), PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "tools.demo.later", str(out), *([QUICK_FLAG] if quick else ())]
    with tempfile.NamedTemporaryFile(prefix="sonoshard-", suffix=".log") as told:
        process = subprocess.Popen(command, env=environment, stdout=told, stderr=told)
        later = LaterSteps(process, Path(told.name))
        torch.set_num_threads(half)
        try:
            yield later
        finally:
            torch.set_num_threads(num_threads)
            later.end()


def main(out: str, *flags: str) -> None:
    """Make and tell the last steps of the demo in a folder whose stages are all trained."""
    stop_with_parent()
    keep_freed_memory()
    quiet_libraries()
    from evaluation.downstream.table import print_downstream
    from tools.demo.exported import draw_in_bare_environment, export_all
    from tools.demo.judgement import worth
    from tools.demo.merged import merged_stages
    from tools.merge.choice import print_table

    quick = QUICK_FLAG in flags
    config = demo_config(Path(out), quick=quick)
    with one_line_errors():
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
