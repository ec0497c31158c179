"""Every configuration that is shipped goes as far as a dry run, on files in the layouts of its databases."""

from pathlib import Path

import pytest

from launch.config import RunConfig, load_config
from launch.dry_run import check_run
from launch.prepare import encode_databases, prepare_databases
from tests.launch.test_all_databases import settings_of
from tests.tiny_random_model import write_tiny_random_model

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def written(config: RunConfig, folder: Path) -> list[str]:
    """Write files in the layout of each database; return overrides that name where they are."""
    overrides = []
    for name, database in config.databases.items():
        if database.kind == "simulated":
            overrides += [f"databases.{name}.count=24", f"databases.{name}.size=64"]
        else:
            overrides.append(f"databases.{name}.root={settings_of(database.kind, folder / name)['root']}")
    return overrides


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_dry_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    path = CONFIGS / f"{name}.yaml"
    model = write_tiny_random_model(tmp_path / "model")
    # A fixture has few patients.
    overrides = [
        f"run={tmp_path}/run",
        f"model.base={model}",
        "model.resolution=64",
        "prepare.validation_fraction=0.25",
    ]
    config = load_config(path, [*overrides, *written(load_config(path), tmp_path)])
    prepare_databases(config)
    encode_databases(config)
    told = check_run(config, world_size=1)
    assert [line.split(":")[0] for line in told.splitlines()[:-1]] == [f"stage {s.name}" for s in config.stages]


def test_the_papers_settings() -> None:
    """Those that facts of the paper give: images seen, learning rates, guidance."""
    config = load_config(CONFIGS / "controlnet_busi.yaml", ["databases.busi.root=."])
    diffusion, control = config.stages
    assert (diffusion.steps or 0) * config.batch.global_size == 20_000 * 2
    assert (control.steps or 0) * config.batch.global_size == 15_000 * 4
    assert config.stage_optimizer(diffusion).lr == 2e-6
    assert config.stage_optimizer(control).lr == 1e-5
    assert config.preview.sampling.guidance == 7
    # The files are one run: the second goes on where the first ended.
    first = load_config(CONFIGS / "busi.yaml", ["databases.busi.root=."])
    assert first.run == config.run
    assert first.stages[0] == diffusion
