"""Merges files in a process of its own and prints how far its anonymous memory rose, in bytes: see test_memory.py."""

import re
import sys
import threading
import time
from pathlib import Path

import torch

from models.merging.merged import Merged
from models.merging.recipe import Method, make_recipe
from models.merging.source import FileSource
from models.merging.writer import write_pieces


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


def main(method: Method, out: str, *files: str) -> None:
    """Merge files; the last one is the base of methods that need one."""
    settings = {"base": files[-1]} if method in ("add-difference", "ties", "dare") else {}
    recipe = make_recipe(method=method, sources=list(files[:-1]), **settings)
    torch.zeros(10).add_(1)  # what torch takes for itself at first use is not the merge's
    before = anonymous_bytes()
    peak = Peak()
    peak.start()
    *sources, base = (FileSource(file, [Path(file)]) for file in files)
    merged = Merged(recipe, sources, base if settings else None)
    write_pieces(Path(out), merged.tensors, merged.all_pieces(), {})
    peak.is_over = True
    peak.join()
    print(peak.bytes - before)


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[2:])  # type: ignore[arg-type]
