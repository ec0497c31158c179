"""bitsandbytes and DeepSpeed without torch's compiler, which a run that compiles nothing need not wait for.

Both decorate functions with torch.compile that nothing here calls: bitsandbytes its kernels for other devices than CPUs
and NVIDIA's, DeepSpeed the Muon optimizer. The decorator alone imports torch._inductor, a quarter of a rank's start.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within it torch.compile leaves what it gets as it is. Not for several threads."""
    compile_, torch.compile = torch.compile, _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    return function if function is not None else _as_it_is


with without_compiler():
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.optim import AdamW, AdEMAMix, Lion

__all__ = ["AdEMAMix", "AdamW", "Lion", "dequantize_blockwise", "without_compiler"]
