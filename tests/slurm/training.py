"""A small run on the test cluster, by the scripts that users submit."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.step_log import STEPS_FILE, read_steps
from tests.slurm.cluster import Cluster

CHECKOUT = Path(__file__).parent.parent.parent
NUM_STEPS = 240


class Training:
    """One run's folder, and the jobs that train there. `settings` are overrides of the configuration."""

    def __init__(self, cluster: Cluster, folder: Path, data: Path, settings: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._data = data
        self._settings = settings
        self.run = folder

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ("--nodes=2",)) -> int:
        """Return the id of a new job of slurm/SCRIPT."""
        self.run.parent.mkdir(parents=True, exist_ok=True)
        output = f"--output={self.run.parent}/%x-%j.out"
        # One thread a rank: sums over another number of threads differ in the last bit.
        variables = {
            "DATA": str(self._data),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{self._cluster.environment['PATH']}",
        }
        return self._cluster.sbatch(
            *options,
            output,
            f"slurm/{script}",
            *arguments,
            f"run={self.run}",
            *self._settings,
            env=variables,
            cwd=CHECKOUT,
        )

    def wait_for_end(self, job: int, timeout_s: float = 180) -> None:
        """Return when a job is done. Raises: RuntimeError with the end of the job's log if it failed or is late."""
        try:
            self._cluster.wait_for_state(job, "COMPLETED", timeout_s=timeout_s)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.log()[-4000:]}") from error

    def wait_for_steps(self, num_steps: int, timeout_s: float = 90) -> int:
        """Return how many steps are done, once they are `num_steps` more than now."""
        goal = self.num_steps() + num_steps
        try:
            self._cluster.wait_until(lambda: self.num_steps() >= goal, f"step {goal} of {self.run}", timeout_s)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.log()[-4000:]}") from error
        return self.num_steps()

    def wait_for_log(self, text: str, timeout_s: float = 90) -> None:
        """Return when `text` stands in the log."""
        self._cluster.wait_until(lambda: text in self.log(), f"{text!r} in the log of {self.run}", timeout_s)

    def wait_for_restart(self, job: int, disturb: Callable[[], object], timeout_s: float = 90) -> None:
        """Disturb a running job, and return when it runs again."""
        number = int(self._cluster.job(job)["Restarts"])
        disturb()
        self.wait_for_log(f", start {number + 2}", timeout_s)

    def num_steps(self, stage: str = "busi") -> int:
        """Return the newest step of a stage."""
        steps = self.steps(stage)
        return int(steps[-1]["step"]) if steps else 0

    def steps(self, stage: str = "busi") -> list[dict[str, Any]]:
        """Return what the run recorded of each step."""
        path = self.run / "stages" / stage / STEPS_FILE
        return read_steps(path) if path.exists() else []

    def log(self) -> str:
        """Return what all jobs of the run said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.run.glob("slurm-*.log")))

    def weights(self, stage: str = "busi", part: str = "unet") -> bytes:
        """Return the file of a stage's final weights."""
        (file,) = (self.run / "stages" / stage / "model" / part).glob("*.safetensors")
        return file.read_bytes()

    def record(self, stage: str = "busi") -> dict[str, object]:
        """Return what stands beside a stage's model."""
        content: dict[str, object] = json.loads((self.run / "stages" / stage / "model" / "sonoshard.json").read_text())
        return content
