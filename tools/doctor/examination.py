"""All checks in their order, printed as they are made, and what they come to."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tools.doctor import base_models, gpus, network, slurm, software
from tools.doctor.disks import Disks
from tools.doctor.finding import Check, Finding, findings_of, mend
from tools.doctor.subprocesses import end_running

if TYPE_CHECKING:
    from launch.config import RunConfig

WIDTH = 80
NAME_WIDTH = 14
COMMAND = " run: "
DEFAULT_RUN = Path("runs")


def examine(path: Path | None, overrides: Sequence[str], run: Path | None) -> int:
    """Print what every check finds; return 0 if nothing must be mended, else 1.

    path, overrides: of a configuration whose base model, databases and shards are looked for as well. run: the folder
    to measure. None: the configuration's, or runs/.
    Raises: ConfigError if the configuration is wrong, before anything is printed.
    """
    config, unreadable = _loaded(path, overrides)
    # SLURM ends jobs by TERM: through every `finally`, so that a measurement removes its files.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        findings = [] if unreadable is None else [unreadable]
        print(f"{socket.gethostname()}: what is fine, what to note (!), what to mend (X)")
        for group, checks in _groups(
            config, shlex.join([str(path), *overrides]), run or (config.run if config else DEFAULT_RUN)
        ):
            print(f"\n{group}")
            for name, check in checks:
                for finding in findings_of(name, check):
                    findings.append(finding)
                    print(_lines(finding), flush=True)
    finally:
        end_running()
        signal.signal(signal.SIGTERM, before)
    if unreadable is not None:
        print(f"\n{_lines(unreadable)}")
    num_wrong = sum(finding.verdict == "mend" for finding in findings)
    print(f"\n{_sum(num_wrong)}")
    return 1 if num_wrong else 0


def _groups(config: RunConfig | None, arguments: str, run: Path) -> Iterator[tuple[str, list[tuple[str, Check]]]]:
    yield (
        "Software",
        [
            ("Python", software.check_python),
            ("checkout", software.check_checkout),
            ("imports", software.check_imports),
            ("libraries", software.check_origins),
            ("packages", software.check_versions),
            ("compiler", software.check_compiler),
            ("limits", software.check_limits),
        ],
    )
    yield (
        "GPUs and engine",
        [
            ("torch", gpus.check_torch),
            ("DeepSpeed", gpus.check_deepspeed),
            ("bitsandbytes", gpus.check_bitsandbytes),
        ],
    )
    yield (
        "Between ranks",
        [
            ("collectives", network.check_collectives),
            ("interfaces", network.check_interfaces),
            ("host name", network.check_host_name),
            ("InfiniBand", network.check_infiniband),
            ("/dev/shm", network.check_shared_memory),
        ],
    )
    disks = Disks(run)
    yield "Disks", [("disks", disks.check)]
    yield (
        "SLURM",
        [
            ("SLURM", slurm.check_commands),
            ("partitions", slurm.check_partitions),
            ("preemption", lambda: slurm.check_preemption(disks.run_write_speed)),
            ("job", slurm.check_job),
        ],
    )
    yield "Base models, offline", [("cache", base_models.check_cache)]
    if config is not None:
        yield (
            f"Configuration {arguments}",
            [
                ("base", partial(base_models.check_base, config)),
                ("databases", partial(base_models.check_databases, config)),
                ("shards", partial(base_models.check_shards, config, arguments)),
            ],
        )


def _loaded(path: Path | None, overrides: Sequence[str]) -> tuple[RunConfig | None, Finding | None]:
    """Return the configuration; where packages are missing that it takes to read one, a finding instead."""
    if path is None:
        return None, None
    try:
        from launch.config import load_config
    except ImportError as error:
        return None, mend(str(path), f"cannot be read: {error}", software.INSTALL)
    return load_config(path, overrides), None


def _lines(finding: Finding) -> str:
    """Return a finding for a terminal of 80 columns."""
    mark = {"fine": " ", "note": "!", "mend": "X"}[finding.verdict]
    text = "fine: " + finding.found if finding.verdict == "fine" else finding.found
    indent = " " * (NAME_WIDTH + 3)
    wrap = partial(textwrap.wrap, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = wrap(text, initial_indent=f"{mark} {finding.name:{NAME_WIDTH}} ", subsequent_indent=indent)
    # A command is to be copied, and so stands on a line of its own, however long.
    advice, is_command, command = finding.advice.partition(COMMAND)
    if advice:
        lines += wrap(f"-> {advice}{is_command.rstrip()}", initial_indent=indent, subsequent_indent=indent + "   ")
    return "\n".join([*lines, f"{indent}   {command}"] if command else lines)


def _sum(num_wrong: int) -> str:
    if num_wrong == 0:
        return "everything needed is here"
    return f"{num_wrong} thing{'s' * (num_wrong > 1)} to mend (X)"


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
