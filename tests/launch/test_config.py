"""A wrong configuration is refused with one line that says what was found, what was needed, what mends it."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import BatchConfig, load_config
from launch.errors import ConfigError
from launch.record import config_text
from launch.schema import SCHEMA, schema_text

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_survives_being_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "/data")
    config = load_config(path)
    (tmp_path / "config.yaml").write_text(config_text(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_the_schema_for_editors_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run: python -m launch.schema"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "unknown key optimiser, did you mean optimizer? (known here: run, seed, shards, model, "),
        ("optimizer.learning_rate=1", "unknown key optimizer.learning_rate"),
        ("batch.global_sise=8", "unknown key batch.global_sise, did you mean global_size? (known here: global_size, "),
        ("databases.busi.rooot=x", "unknown key databases.busi.rooot, did you mean root? (known here: "),
        ("databases.busi.kind=bussi", "databases.busi.kind=bussi is unknown, did you mean busi? (known: "),
        ("stages.0.stepz=3", "unknown key stages.0.stepz, did you mean steps? (known here: name, databases, "),
        ("stages.0.steps=-3", "stages.0.steps=-3: Input should be greater than 0"),
        ("optimizer.lr=fast", "optimizer.lr='fast': Input should be a valid number"),
        (
            "optimizer.name=sgd",
            "optimizer.name='sgd': Input should be 'adamw8bit', 'lion8bit', 'ademamix8bit' or 'adamw'",
        ),
        ("stages.0.databases=[bussi]", "stage busi names database 'bussi', which is not among `databases` (busi), did"),
        ("stages.0.weights={other: 1}", "stage busi names database 'other', which is not among `databases` (busi)"),
        ("databases.b/c={kind: busi, root: x}", "database name 'b/c' names folders: use letters, digits, '_' and '-'"),
        ("seed", "override 'seed' is not KEY=VALUE, such as optimizer.lr=2e-5"),
        ("run=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
    ],
)
def test_a_wrong_setting_names_what_mends_it(prepared: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(prepared, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_in_overrides_are_as_people_write_them(prepared: Path) -> None:
    config = load_config(prepared, ["optimizer.lr=2e-5", "stages.0.steps=7", "preview.every_steps=null"])
    assert config.optimizer.lr == 2e-5
    assert config.stages[0].steps == 7
    assert config.preview.every_steps is None


def test_environment_variables_are_filled_in(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/somewhere")
    config = load_config(prepared, ["databases.busi.root=${oc.env:DATA}/BUSI"])
    assert str(config.databases["busi"].root) == "/somewhere/BUSI"  # type: ignore[union-attr]


def test_a_missing_file_and_a_file_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*none\.yaml: give a YAML file"):
        load_config(tmp_path / "none.yaml")
    for content, message in (("- 1\n- 2\n", "holds list, needs keys and values"), ("run: [", "while parsing")):
        (tmp_path / "bad.yaml").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "bad.yaml")


def test_two_stages_need_two_names(prepared: Path) -> None:
    stage = "{name: a, databases: [busi], steps: 1}"
    with pytest.raises(ConfigError, match="stages are named a, a: each needs a name of its own"):
        load_config(prepared, [f"stages=[{stage}, {stage}]"])


@pytest.mark.parametrize(("num_ranks", "nearest"), [(1, "8, 12"), (2, "8, 16"), (4, "16")])
def test_a_batch_that_cannot_be_divided_names_the_nearest_that_can(num_ranks: int, nearest: str) -> None:
    expected = f"batch.global_size=10 is not micro_size=4 x {num_ranks} ranks x a whole number; nearest that work: "
    with pytest.raises(ConfigError) as error:
        BatchConfig(global_size=10, micro_size=4).check_ranks(num_ranks)
    assert str(error.value) == expected + nearest


@pytest.mark.parametrize("module", ["launch.cli", "launch.config"])
def test_help_and_a_wrong_configuration_wait_for_no_heavy_import(module: str) -> None:
    program = f"import sys, {module}; print(*{{'torch', 'diffusers', 'deepspeed', 'pandas'}} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
