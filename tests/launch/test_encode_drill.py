"""The kill drill of `encode`: parts that are killed again and again make the bytes that nothing happened to."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from data.embeddings import ARRAY_FILE, UNFINISHED_ARRAY
from data.shard_index import Contents, index_path, tar_path
from launch import encode_process
from launch.config import load_config
from launch.prepare import prepare_databases
from tests.drill import is_frozen

CONFIG = """\
run: {folder}
model: {{base: tiny, resolution: 64}}
databases:
  sim: {{kind: simulated, count: 48, size: 64}}
encode: {{samples_per_shard: 4, batch_size: 1}}
optimizer: {{lr: 1.0e-3}}
stages:
  - {{name: sim, databases: [sim], steps: 1}}
"""
# Its children begin with these imported, which would take most of the time of each. It never computes: torch's threads
# do not survive a fork.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["diffusers", "launch.encode_process", "launch.prepare", "transformers"])
NUM_PARTS = 2
NUM_ROUNDS = 3
AIMS = ("a shard's tar", "a shard's tar", "its end", "its index", "the embeddings")


@dataclass(frozen=True)
class Moment:
    """When to kill a part: at `aim` of the shard that comes after `num_shards` further ones; tar_bytes: so far."""

    num_shards: int
    aim: str
    tar_bytes: int


class Part:
    """A part of the shards, which a process of its own encodes."""

    def __init__(self, number: int, config: Path, out: Path, shards: list[str]) -> None:
        self.number, self._config, self._out = number, config, out
        self._shards = shards[number::NUM_PARTS]
        self.process: ForkServerProcess

    def start(self) -> None:
        arguments = [str(self._config), str(self.number), str(NUM_PARTS), f"shards={self._out.parent}"]
        self.process = SERVER.Process(target=encode_process.main, args=(arguments,))
        self.process.start()

    def unfinished(self) -> list[str]:
        return [name for name in self._shards if not index_path(self._out, name).exists()]

    def has_come(self, moment: Moment, shard: str) -> bool:
        """Return whether the moment is there, or was missed."""
        tar = tar_path(self._out, shard)
        partial = tar.with_name(f".{tar.name}.partial")
        if moment.aim == "the embeddings" and self.number == 0:
            return (self._out / UNFINISHED_ARRAY).exists() or (self._out / ARRAY_FILE).exists()
        if moment.aim == "its index":
            return index_path(self._out, shard).exists()
        if moment.aim == "its end" or tar.exists():
            return tar.exists()
        return partial.exists() and partial.stat().st_size >= moment.tar_bytes

    def freeze(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        while not is_frozen(self.process.pid):
            time.sleep(0.0002)

    def what_is_done(self) -> str:
        """Return which part of its work the files of a frozen part show."""
        tars = [tar_path(self._out, name) for name in self.unfinished()]
        if any(tar.with_name(f".{tar.name}.partial").exists() for tar in tars):
            return "in a tar"
        if any(tar.exists() for tar in tars):
            return "between tar and index"
        return "in the embeddings" if (self._out / UNFINISHED_ARRAY).exists() else "between shards"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_round(parts: list[Part], moments: list[Moment]) -> list[str]:
    """Start the parts, kill each at its moment, and return what was hit."""
    aims = [part.unfinished()[moment.num_shards] for part, moment in zip(parts, moments, strict=True)]
    for part in parts:
        part.start()
    waiting = list(zip(parts, moments, aims, strict=True))
    hits = []
    while waiting:
        for item in [item for item in waiting if item[0].has_come(item[1], item[2])]:
            part = item[0]
            assert part.process.is_alive()
            part.freeze()
            hits.append(part.what_is_done())
            part.process.kill()
            part.process.join()
            assert part.process.exitcode == -signal.SIGKILL
            waiting.remove(item)
        assert all(part.process.is_alive() for part, *_ in waiting), "its moment never came"
        time.sleep(0.0005)
    return hits


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc whether a process is frozen")
def test_parts_that_are_killed_again_and_again_make_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    prepare_databases(load_config(path))
    # As the parts are, in a process of the same server: another number of threads would round otherwise.
    undisturbed = SERVER.Process(
        target=encode_process.main, args=([str(path), "0", "1", f"shards={tmp_path}/straight"],)
    )
    undisturbed.start()
    undisturbed.join()
    assert undisturbed.exitcode == 0
    straight, killed = tmp_path / "straight" / "64", tmp_path / "killed" / "64"
    parts = [Part(number, path, killed, list(Contents.read(straight).shards)) for number in range(NUM_PARTS)]

    generator = random.Random(1)
    hits: Counter[str] = Counter()
    try:
        for _ in range(NUM_ROUNDS):
            moments = [
                Moment(generator.randrange(2), generator.choice(AIMS), generator.randrange(0, 12_000)) for _ in parts
            ]
            hits.update(kill_round(parts, moments))
        for part in parts:
            assert part.unfinished(), "there is still something to do"
            part.start()
        for part in parts:
            part.process.join()
            assert part.process.exitcode == 0
    finally:
        for part in parts:
            part.process.kill()
    assert hits.total() == NUM_PARTS * NUM_ROUNDS
    assert hits["in a tar"] >= 1, hits
    assert files(killed) == files(straight)
