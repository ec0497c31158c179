"""Counts the bytes of tensors while they live: on any device, and without any memory on fake tensors."""

import weakref
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes:
    """Within it, counts; after it, `bytes` is the most that was alive at once beside what was there before.

    On CUDA the allocator's own count, with what kernels take while they run; elsewhere that of `LiveBytes`.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device
        self._live = LiveBytes()

    def __enter__(self) -> Self:
        """Begin to count."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop, and set `bytes`."""
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        else:
            self._live.__exit__(*error)
            self.bytes = self._live.peak


class LiveBytes(TorchDispatchMode):
    """Within it, `present` and `peak` are the bytes of the storages that operators made and that are still alive.

    A storage counts once, however many tensors view it; what was made before does not count. It sees the backward pass
    and what is computed again there. It does not see what a kernel takes for itself while it runs, nor the device's
    allocator: its rounding, its cache, its fragments. On fake tensors (torch's FakeTensorMode, entered before this)
    nothing is allocated and the figures are the same.

    torch.distributed._tools.mem_tracker counts alike, and by module; that it hooks every module, replaces methods of
    torch and rounds to 512 bytes is more than is needed here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.present = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._deaths: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what it made."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        older = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata in self._sizes or storage._cdata not in older:
                self._count(storage)
        return result

    def _count(self, storage: UntypedStorage) -> None:
        # By address: Python may drop and make again the object of a storage, and the weak reference lives on with it.
        key = storage._cdata
        if key not in self._deaths:
            self._deaths[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.present += storage.nbytes() - self._sizes.get(key, 0)  # an operator may have resized it
        self._sizes[key] = storage.nbytes()
        self.peak = max(self.peak, self.present)

    def _forget(self, key: int) -> None:
        self.present -= self._sizes.pop(key)
        del self._deaths[key]


def _storages(tree: Any) -> Iterator[UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
