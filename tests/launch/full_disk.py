"""As the one rank of a process group: a run whose disk is full at its second checkpoint, and that goes on afterwards.

unshare --mount python -m tests.launch.full_disk CONFIG FOLDER
FOLDER becomes a small file system in memory, which this process alone sees and which ends with it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.checkpoint import find_checkpoint
from distributed.preemption import StopRequest
from distributed.rank import join_process_group, leave_process_group, rank_from_environment
from launch.config import load_config
from launch.failure import end_at_once
from launch.train import train
from tests.launch.conftest import own_run
from tests.launch.skip_scenarios import SETTINGS

WEIGHTS = Path("stages/busi/model/unet/diffusion_pytorch_model.safetensors")
CHECKPOINTS = Path("stages/busi/checkpoints")
DISK_MIB = 200


def main(config_path: Path, disk: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True)
    config = load_config(config_path, [*SETTINGS, "stages.0.steps=4", "checkpoint.keep_last=1"])
    join_process_group()
    rank = rank_from_environment()
    undisturbed, full = disk / "undisturbed", disk / "full"
    train(own_run(config, undisturbed), rank, StopRequest())
    (saved,) = (undisturbed / CHECKPOINTS).glob("step-*")
    num_bytes = sum(path.stat().st_size for path in saved.iterdir())

    rest = disk / "rest"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    rest.write_bytes(bytes(free - num_bytes * 3 // 2))
    with pytest.raises(RuntimeError, match=r"step-00000002: \[Errno 28\] No space left on device.* earlier ones"):
        train(own_run(config, full), rank, StopRequest())
    assert sorted(path.name for path in (full / CHECKPOINTS).iterdir()) == ["LATEST", "step-00000001"]
    found = find_checkpoint(full / CHECKPOINTS)
    assert found is not None
    assert found.position["step"] == 1
    assert found.skipped == ()

    rest.unlink()
    train(own_run(config, full), rank, StopRequest())
    assert (full / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    leave_process_group()
    end_at_once(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
