"""Freed memory is used again; what a person set for glibc stays."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping

import pytest

library, version = platform.libc_ver()
pytestmark = pytest.mark.skipif(
    library != "glibc" or tuple(map(int, version.split("."))) < (2, 35),
    reason="glibc's own settings; below 32 MB, which earlier ones take at most, it adapts by itself",
)

ROUNDS = 20
# Page faults of ROUNDS times 48 MB that are written to and freed: what a network's activations are at each step.
PROGRAM = f"""
import ctypes, resource
import numpy as np
from launch.freed_memory import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page is one fault
{{before}}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
begun = faults()
for _ in range({ROUNDS}):
    np.empty(48 * 2**20, np.uint8).fill(1)
print(faults() - begun)
"""


def page_faults(before: str, environment: Mapping[str, str]) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = [sys.executable, "-c", PROGRAM.format(before=before)]
    inherited.update(environment)
    return int(subprocess.run(program, capture_output=True, text=True, check=True, env=inherited).stdout)


def test_memory_comes_from_the_kernel_once() -> None:
    anew = page_faults("", {})
    kept = page_faults("keep_freed_memory()", {})
    assert anew > 0.9 * ROUNDS * kept


def test_settings_of_the_environment_stay() -> None:
    anew = page_faults("keep_freed_memory()", {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"})
    assert anew > 0.9 * ROUNDS * page_faults("keep_freed_memory()", {})
