"""A small run on the test cluster, by the scripts that users submit."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.step_log import STEPS_FILE, read_steps
from tests.slurm.cluster import Cluster

CHECKOUT = Path(__file__).parent.parent.parent
NUM_STEPS = 60
# Of a chain: the first is that of configs/busi.yaml, which all other runs here have alone.
STAGES = {"busi": NUM_STEPS, "two": 10, "three": 10}


def training(cluster: Cluster, folder: Path, name: str, *settings: str) -> "Training":
    """Return a run of `folder`/runs/NAME on the data and the base model in `folder`."""
    small = (
        f"model.base={folder}/model",
        "model.resolution=64",
        "prepare.validation_fraction=0.25",
        f"stages.0.steps={NUM_STEPS}",
        "checkpoint.save_every_steps=10",
        "preview.every_steps=null",
    )
    return Training(cluster, folder / "runs" / name, folder / "data", (*small, *settings))


class Training:
    """One run's folder, and the jobs that train there. `settings` are overrides of the configuration."""

    def __init__(self, cluster: Cluster, folder: Path, data: Path, settings: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._data = data
        self._settings = settings
        self.run = folder

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides, the run's folder among them."""
        return (*self._settings, f"run={self.run}")

    @property
    def disk(self) -> Path:
        """What stands for the nodes' own disks."""
        return self.run.with_name(f"{self.run.name}-disk")

    @property
    def variables(self) -> dict[str, str]:
        """What a job finds in its environment."""
        return {
            "DATA": str(self._data),
            "SLURM_TMPDIR": str(self.disk),
            # One thread a rank: sums over another number of threads differ in the last bit.
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{self._cluster.environment['PATH']}",
        }

    def submit(
        self, script: str, *config: str, settings: Sequence[str] = (), options: Sequence[str] = ("--nodes=2",)
    ) -> int:
        """Return the id of a new job of slurm/SCRIPT. settings: on top of the run's own."""
        self.run.parent.mkdir(parents=True, exist_ok=True)
        output = f"--output={self.run.parent}/%x-%j.out"
        command = (*options, output, f"slurm/{script}", *config, *self.settings, *settings)
        return self._cluster.sbatch(*command, env=self.variables, cwd=CHECKOUT)

    def wait_for_end(self, job: int, timeout_s: float = 300) -> None:
        """Return when a job is done. Raises: RuntimeError with the end of the job's log if it failed or is late."""
        try:
            self._cluster.wait_for_state(job, "COMPLETED", timeout_s=timeout_s)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.log()[-4000:]}") from error

    def wait_for_steps(self, num_steps: int, timeout_s: float = 180) -> int:
        """Return how many steps are done, once they are `num_steps` more than now."""
        goal = self.num_steps() + num_steps
        try:
            self._cluster.wait_until(lambda: self.num_steps() >= goal, f"step {goal} of {self.run}", timeout_s)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.log()[-4000:]}") from error
        return self.num_steps()

    def wait_for_log(self, text: str, timeout_s: float = 180) -> None:
        """Return when `text` stands in the log."""
        self._cluster.wait_until(lambda: text in self.log(), f"{text!r} in the log of {self.run}", timeout_s)

    def wait_for_restart(self, job: int, disturb: Callable[[], object], timeout_s: float = 180) -> None:
        """Disturb a running job, and return when it runs again."""
        number = int(self._cluster.job(job)["Restarts"])
        disturb()
        self.wait_for_log(f", start {number + 2}", timeout_s)

    def rank_pid(self) -> int:
        """Return the process of one of the ranks that train on the cluster."""

        def ranks() -> list[int]:
            commands = self._cluster.pids().items()
            return [pid for pid, line in commands if "sonoshard train" in line and "srun" not in line]

        self._cluster.wait_until(lambda: bool(ranks()), f"a rank of {self.run}", timeout_s=180)
        return ranks()[0]

    def num_steps(self, stage: str = "busi") -> int:
        """Return the newest step of a stage."""
        steps = self.steps(stage)
        return int(steps[-1]["step"]) if steps else 0

    def steps(self, stage: str = "busi") -> list[dict[str, Any]]:
        """Return what the run recorded of each step."""
        path = self.run / "stages" / stage / STEPS_FILE
        return read_steps(path) if path.exists() else []

    def num_ranks(self) -> int:
        """Return how many ranks train, or trained last."""
        return int(json.loads((self.run / "job.json").read_text())["world_size"])

    def stops(self) -> list[int]:
        """Return the step of each stop that was asked for. Raises: AssertionError unless each went on behind it."""
        told = re.findall(r"(stopped on request|resumed) after step (\d+)", self.log())
        stops = [number for number, (what, _) in enumerate(told) if what == "stopped on request"]
        for number in stops:
            assert told[number + 1] == ("resumed", told[number][1])
        return [int(told[number][1]) for number in stops]

    def log(self) -> str:
        """Return what all jobs of the run said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.run.glob("slurm-*.log")))

    def weights(self, stage: str = "busi", part: str = "unet") -> bytes:
        """Return the file of a stage's final weights."""
        (file,) = (self.run / "stages" / stage / "model" / part).glob("*.safetensors")
        return file.read_bytes()

    def assert_staged(self) -> None:
        """Raise AssertionError unless the shards were copied to the nodes' own disks."""
        (copy,) = self.disk.glob("sonoshard-*")
        assert len(list(copy.rglob("*.tar"))) == 3, "a split is a shard"

    def record(self, stage: str = "busi") -> dict[str, object]:
        """Return what stands beside a stage's model."""
        content: dict[str, object] = json.loads((self.run / "stages" / stage / "model" / "sonoshard.json").read_text())
        return content


def chain_of_stages() -> str:
    """Return the setting that makes of a run the stages in `STAGES`."""
    stages = (f"{{name: {name}, databases: [busi], steps: {steps}}}" for name, steps in STAGES.items())
    return f"stages=[{', '.join(stages)}]"


def assert_same(disturbed: Training, undisturbed: Training, stages: Iterable[str] = ("busi",)) -> None:
    """Every sample was seen once and in the same order, and each weight is the same to the bit."""
    for stage in stages:
        for what in ("step", "ids", "loss"):
            assert [step[what] for step in disturbed.steps(stage)] == [step[what] for step in undisturbed.steps(stage)]
        assert disturbed.weights(stage) == undisturbed.weights(stage)
