"""Silences what libraries say about things that are as they should be, so that a warning in a log means something."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Set environment and loggers before the heavy imports. What is silenced is said beside each line."""
    # At its import bitsandbytes warns that a 4-bit kernel is missing, which nothing here uses.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # transformers warns that image processors fall back to Pillow without torchvision, which is left out on purpose.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # Bars of the libraries ("Writing model shards") would tear the bar of the run.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # DeepSpeed calls collectives by their old names.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # NCCL's barrier says which device it takes.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    # bitsandbytes and DeepSpeed script functions with TorchScript.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
