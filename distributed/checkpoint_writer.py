"""Writing checkpoints, together on all ranks, at once or while training goes on."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distributed.checkpoint import FORMAT_VERSION, prune, publish, slices_name, step_folder
from distributed.checkpoint_state import Averages, groups_of, slices_of
from distributed.config import CheckpointConfig
from distributed.engine import Engine
from distributed.rank import raise_together
from distributed.slice_file import write_slices


@dataclass
class _Pending:
    """A checkpoint whose slices are being written. digest, failure: set by the thread, if there is one."""

    partial: Path
    final: Path
    manifest: dict[str, Any]
    thread: threading.Thread | None = None
    digest: str | None = None
    failure: Exception | None = None


class CheckpointWriter:
    """Writes the checkpoints of one engine under `root`. Every method is collective.

    A checkpoint appears by a rename once all ranks' files are on the disk; until then earlier ones are untouched.
    Where `checkpoint.is_async` is set, each rank copies its slices to host memory and a thread writes them while
    training goes on; at most one is on its way, and the next save waits for it.
    """

    def __init__(self, root: Path, engine: Engine, config: CheckpointConfig) -> None:
        self._root, self._engine, self._config = root, engine, config
        self._pending: _Pending | None = None
        self.newest_step: int | None = None  # of the last checkpoint that was named
        self.damaged: set[str] = set()  # names of those that were found to be, and are not to be counted on

    def save(self, averages: Averages, position: dict[str, Any]) -> None:
        """Write a checkpoint. An older folder of the same step, damaged or resumed from before it, is replaced.

        averages: this rank's slices of the averaged weights. position: what the loop needs to go on (JSON); its `step`
        names the folder, its `validation_loss`, if there is one, decides which is the best.
        Raises: RuntimeError on every rank if any rank could not write.
        """
        self.finish()
        final = step_folder(self._root, int(position["step"]))
        pending = _Pending(
            partial=self._root / f".{final.name}.partial", final=final, manifest=self._manifest(averages, position)
        )
        with self._failing_together(pending, _unwritten):
            if self._engine.rank.is_first:
                shutil.rmtree(pending.partial, ignore_errors=True)
                pending.partial.mkdir(parents=True)
        tensors = slices_of(self._engine, averages) if self._writes else {}
        if self._config.is_async:
            copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
            pending.thread = threading.Thread(target=self._write, args=(pending, copies), name="checkpoint")
            pending.thread.start()
            self._pending = pending
        else:
            self._write(pending, tensors)
            self._complete(pending)

    def poll(self) -> None:
        """Name the checkpoint that is on its way, if every rank's file is written; else return at once."""
        if self._pending is None:
            return
        assert self._pending.thread is not None
        is_done = torch.tensor([not self._pending.thread.is_alive()], dtype=torch.int32, device=self._engine.device)
        dist.all_reduce(is_done, op=dist.ReduceOp.MIN)
        if is_done.item():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is on its way, if there is one, and name it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            assert pending.thread is not None
            pending.thread.join()
            self._complete(pending)

    @property
    def _writes(self) -> bool:
        """Whether this rank has slices to write; where nothing is divided, only the first has."""
        return self._engine.slice_index == self._engine.rank.index

    def _manifest(self, averages: Averages, position: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "world_size": self._engine.rank.world_size,
            "zero_stage": self._engine.zero_stage,
            "num_steps": self._engine.num_steps,
            "averages": list(averages),
            "position": dict(position),
            "groups": groups_of(self._engine, averages),
            # A code of an 8-bit moment means what bitsandbytes' map says.
            "versions": {"torch": torch.__version__, **{name: version(name) for name in ("deepspeed", "bitsandbytes")}},
        }

    def _write(self, pending: _Pending, tensors: Mapping[str, Tensor]) -> None:
        if not self._writes:
            return
        try:
            pending.digest = write_slices(pending.partial / self._file_name, tensors)
        except Exception as failure:  # of any kind: one that ended the thread would leave a checkpoint without a hash
            pending.failure = failure

    @property
    def _file_name(self) -> str:
        return slices_name(self._engine.slice_index, self._engine.groups[0].layout.num_slices)

    def _complete(self, pending: _Pending) -> None:
        """Publish a checkpoint whose files every rank has tried to write."""
        files: list[tuple[str, str | None] | None] = [None] * self._engine.rank.world_size
        dist.all_gather_object(files, (self._file_name, pending.digest) if self._writes else None)
        failure = pending.failure
        if self._writes and pending.digest is None and failure is None:
            failure = RuntimeError("its slices were not written to the end")
        self._raise_together(pending, _unwritten(pending, failure) if failure else None, failure)
        pending.manifest["files"] = dict(file for file in files if file is not None)
        with self._failing_together(pending, _unwritten):
            if self._engine.rank.is_first:
                publish(pending.partial, pending.final, pending.manifest)
        self.newest_step = int(pending.manifest["position"]["step"])
        self.damaged.discard(pending.final.name)
        with self._failing_together(pending, _not_pruned):
            if self._engine.rank.is_first:
                prune(
                    self._root,
                    pending.final,
                    keep_last=self._config.keep_last,
                    keep_best=self._config.keep_best,
                    damaged=self.damaged,
                )

    @contextmanager
    def _failing_together(self, pending: _Pending, explain: Callable[[_Pending, Exception], str]) -> Iterator[None]:
        """Turn an OSError of any rank into a RuntimeError of every rank."""
        failure = None
        try:
            yield
        except OSError as caught:
            failure = caught
        self._raise_together(pending, explain(pending, failure) if failure else None, failure)

    def _raise_together(self, pending: _Pending, error: str | None, failure: Exception | None) -> None:
        """Raise the first error of any rank on every rank, and take the partial folder away.

        failure: what this rank's error is about, whose traceback it shows.
        """
        try:
            raise_together(error, self._engine.rank)
        except RuntimeError as raised:
            if self._engine.rank.is_first:
                shutil.rmtree(pending.partial, ignore_errors=True)
            raise raised from failure


def _unwritten(pending: _Pending, failure: Exception) -> str:
    reason = failure if isinstance(failure, OSError) else f"{type(failure).__name__}: {failure}"
    return f"could not write the checkpoint {pending.final}: {reason}; earlier ones beside it are whole"


def _not_pruned(pending: _Pending, failure: Exception) -> str:
    return f"the checkpoint {pending.final} is whole, but BEST beside it could not be written: {failure}"
