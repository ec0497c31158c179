"""As the one rank of a process group: runs whose disk is full at their second checkpoint, and that go on afterwards.

unshare --mount python -m tests.launch.full_disk CONFIG FOLDER
FOLDER becomes a small file system in memory, which this process alone sees and which ends with it.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distributed.checkpoint import find_checkpoint
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment
from distributed.stop_request import StopRequest
from launch.config import RunConfig, load_config
from launch.failure import end_at_once
from launch.step_log import StepLog
from launch.train import train
from tests.launch.conftest import own_run
from tests.launch.skip_scenarios import SETTINGS

WEIGHTS = Path("stages/busi/model/unet/diffusion_pytorch_model.safetensors")
CHECKPOINTS = Path("stages/busi/checkpoints")
DISK_MIB = 200
NO_ROOM_FOR_LOGS = (
    r"could not write to .*No space left on device; stage busi: the newest checkpoint is of step 2: make room"
)


def check(config: RunConfig, rank: Rank, undisturbed: Path, message: str, may_be_left: set[str]) -> None:
    """Train until the second checkpoint finds no room, then on, to the weights of the undisturbed run."""
    (saved,) = (undisturbed / CHECKPOINTS).glob("step-*")
    num_bytes = sum(path.stat().st_size for path in saved.iterdir())
    rest, free = config.run.with_name("rest"), os.statvfs(config.run.parent)
    rest.write_bytes(bytes(free.f_bavail * free.f_frsize - num_bytes * 3 // 2))
    with pytest.raises(RuntimeError, match=message):
        train(config, rank, StopRequest())
    names = {path.name for path in (config.run / CHECKPOINTS).iterdir()}
    assert names - may_be_left == {"LATEST", "step-00000001"}
    found = find_checkpoint(config.run / CHECKPOINTS)
    assert found is not None
    assert found.position["step"] == 1
    assert found.skipped == ()

    rest.unlink()
    train(config, rank, StopRequest())
    assert (config.run / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()


def check_logs(config: RunConfig, rank: Rank) -> None:
    """Have no room for the third step's line: which file is the first without it is chance on a real full disk."""
    write = StepLog.write

    def full(log: StepLog, entry: Mapping[str, Any]) -> None:
        if entry["step"] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(log, entry)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StepLog, "write", full)
        with pytest.raises(RuntimeError, match=NO_ROOM_FOR_LOGS):
            train(config, rank, StopRequest())


def main(config_path: Path, disk: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True)
    config = load_config(config_path, [*SETTINGS, "stages.0.steps=4", "checkpoint.keep_last=1"])
    join_process_group()
    rank = rank_from_environment()
    undisturbed = disk / "undisturbed"
    train(own_run(config, undisturbed), rank, StopRequest())
    for name, checkpoint, message, left in (
        # The writer tells it, and takes away what it has begun.
        ("at-once", config.checkpoint, r"step-00000002: \[Errno 28\] No space left on device.* earlier ones", set()),
        # While training goes on the logs may be the first that have no room; what was begun is replaced later.
        (
            "async",
            config.checkpoint.model_copy(update={"is_async": True}),
            r"(step-00000002|its logs): \[Errno 28\] No space left on device.*(earlier ones|checkpoint is of step 1)",
            {".step-00000002.partial"},
        ),
    ):
        full = config.model_copy(update={"checkpoint": checkpoint})
        check(own_run(full, disk / name), rank, undisturbed, message, left)
    check_logs(own_run(config, disk / "logs"), rank)
    leave_process_group()
    end_at_once(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
