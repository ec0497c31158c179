"""What the demo runs: its configuration, whole or quick, and its steps as they are announced."""

from pathlib import Path

from launch.config import RunConfig, load_config

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
QUICK = (
    "databases.breast.count=256",
    "databases.cardiac.count=128",
    "databases.fetal.count=128",
    "stages.0.steps=60",
    *(f"stages.{stage}.steps=20" for stage in (1, 2, 3, 4)),
    "stages.5.steps=30",
    # In so few steps the whole demo's rate and weights follow lesions in one run and not in the next.
    "stages.6.steps=180",
    "stages.6.optimizer.lr=2e-3",
    "stages.6.objective.min_snr_gamma=0.1",
    "stages.6.objective.timesteps_mean=1.0",
    "optimizer.warmup_steps=5",
    "validation={every_steps: null, num_samples: 16, timesteps_per_sample: 1}",
    "preview.every_steps=null",
    "preview.sampling.steps=8",
)
NUM_STEPS = 9


def demo_overrides(out: Path, *, quick: bool) -> list[str]:
    """Return what a demo in the folder `out` changes of CONFIG."""
    return [f"run={out}", *(QUICK if quick else ())]


def demo_config(out: Path, *, quick: bool) -> RunConfig:
    """Return the configuration of a demo in the folder `out`."""
    return load_config(CONFIG, demo_overrides(out, quick=quick))


def say(number: int, message: str) -> None:
    """Announce a step."""
    print(f"\n[{number} of {NUM_STEPS}] {message}", flush=True)
