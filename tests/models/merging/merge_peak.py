"""Merges models in a process of its own and prints how far its anonymous memory rose, in bytes: see test_memory.py."""

import re
import sys
import threading
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel  # noqa: F401

from tools.merge.command import read_recipe, write_recipe


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


class Peak(threading.Thread):
    """Looks at the memory every millisecond; what is taken at once, such as a tensor, is held for longer."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.is_over = anonymous_bytes(), False

    def run(self) -> None:
        """Look until it is over."""
        while not self.is_over:
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.001)


def main(recipe: str, out: str) -> None:
    """Merge as the command does with a recipe."""
    torch.zeros(10).add_(1)  # what torch takes for itself at first use, and other libraries, is not the merge's
    torch.empty(1, device="meta")
    before = anonymous_bytes()
    peak = Peak()
    peak.start()
    write_recipe(read_recipe(Path(recipe)), Path(out))
    peak.is_over = True
    peak.join()
    print(peak.bytes - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
