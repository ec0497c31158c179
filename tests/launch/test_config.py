"""A wrong configuration is refused with one line that says what was found, what was needed, what mends it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.order import Order
from launch.config import RunConfig, load_config
from launch.errors import ConfigError
from launch.facts import stage_weights
from launch.record import config_text
from launch.run_sections import BatchConfig
from launch.schema import SCHEMA, schema_text
from models.trained_part import LoraConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_survives_being_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "/data")
    config = load_config(path)
    (tmp_path / "config.yaml").write_text(config_text(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_what_is_compiled_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "config.yaml", TWO + "stages: [{name: a, databases: [one], steps: 5}]")
    with pytest.raises(ConfigError, match=r"but zero.stage=3 gathers them .*: set model.compile=false, or zero.stage"):
        load_config(path, ["model.compile=true", "zero.stage=3"])
    assert load_config(path, ["model.compile=true", "zero.stage=2"]).model.compile


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
        ("stages.0.stepz=3", "unknown key stages.0.stepz, did you mean steps? (known here: name, kind, databases, "),
        ("stages.0.steps=-3", "stages.0.steps=-3: Input should be greater than 0"),
        ("optimizer.lr=fast", "optimizer.lr='fast': Input should be a valid number"),
        (
            "optimizer.name=sgd",
            "optimizer.name='sgd': Input should be 'adamw8bit', 'lion8bit', 'ademamix8bit' or 'adamw'",
        ),
        ("stages.0.databases=[bussi]", "stage busi names database 'bussi', which is not among `databases` (busi), did"),
        ("stages.0.weights={other: 1}", "stage busi names database 'other', which is not among `databases` (busi)"),
        ("databases.b/c={kind: busi, root: x}", "database name 'b/c' names folders: use letters of a to z, digits"),
        ("databases.größe={kind: busi, root: x}", "database name 'größe' names folders: use letters of a to z, digits"),
        ("databases.-x={kind: busi, root: x}", "'-x' names folders: use letters of a to z, digits, '_' and '-',"),
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


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


TWO = """
databases: {one: {kind: simulated, count: 8}, two: {kind: simulated, count: 8, seed: 1}}
model: {base: tiny}
run: runs/x
"""


def test_a_file_builds_on_others_by_paths_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "shared/data.yaml", TWO)
    write(tmp_path, "shared/both.yaml", "extends: data.yaml\noptimizer: {lr: 1.0e-3, name: adamw}\nseed: 3")
    stages = "stages: [{name: a, databases: [one], steps: 5}]"
    path = write(tmp_path, "mine.yaml", f"extends: [shared/both.yaml]\noptimizer: {{lr: 2.0e-3}}\n{stages}")
    config = load_config(path, ["seed=4"])
    assert (config.optimizer.lr, config.optimizer.name, config.seed) == (2e-3, "adamw", 4)
    assert set(config.databases) == {"one", "two"}


def test_a_file_that_extends_itself_or_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml")
    path = write(tmp_path, "b.yaml", "extends: a.yaml")
    with pytest.raises(ConfigError, match=rf"b\.yaml extends itself: {path} -> {tmp_path}/a\.yaml -> {path}$"):
        load_config(path)
    path = write(tmp_path, "c.yaml", "extends: gone.yaml")
    with pytest.raises(ConfigError, match=rf"^no configuration file {tmp_path}/gone\.yaml, which {path} extends"):
        load_config(path)
    path = write(tmp_path, "d.yaml", "extends: {a: 1}")
    with pytest.raises(ConfigError, match="needed the name of a file, or a list of them"):
        load_config(path)


def curriculum(tmp_path: Path, second: str) -> RunConfig:
    stages = f"stages: [{{name: a, databases: [one], steps: 5}}, {{name: b, databases: [two], steps: 5, {second}}}]"
    return load_config(write(tmp_path, "c.yaml", TWO + stages))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("replay: {three: 0.1}", "stage b names database 'three', which is not among `databases`"),
        ("replay: {two: 0.1}", "stage b replays two, which it trains on anyway: see `weights`"),
        ("replay: {one: 1.5}", "stages.1.replay.one=1.5: Input should be less than 1"),
        ("start: {a: 1, c: 2}", "stage b starts from a merge with 'c', needed earlier stages (a)"),
        ("start: {a: 1, base: -1}", "start={'a': 1, 'base': -1}: needed a stage's name, or names with weights above 0"),
        ("start: [a]", "start=['a']: needed a stage's name, or names with weights above 0"),
        ("start: {a: 1}", "stage b starts from a merge of one stage: give two, or its name alone"),
        ("epochs: 2", "stage b has both steps and epochs: give one of them"),
        (
            "kind: controlnet, trains: lora",
            "stage b is of kind controlnet, and trains=lora is for a UNet: leave trains",
        ),
        ("augment: {flop: 1}", "stage b: unknown key augment.flop, did you mean flip?"),
        ("start: c", "stage b starts from 'c', needed one of base, a"),
        ("start: b", "stage b starts from 'b', needed one of base, a"),
        ("optimizer: {lrr: 1}", "stage b: unknown key optimizer.lrr, did you mean lr?"),
        ("lora: {rank: 4}", "stage b sets lora, but trains=all: set trains=lora, or leave lora out"),
        ("trains: lora, lora: {rnk: 4}", "unknown key stages.1.lora.rnk, did you mean rank? (known here: rank, alpha)"),
        ("trains: some", "stages.1.trains='some': Input should be 'all', 'cross_attention' or 'lora'"),
        ("optimizer: {l2_sp: 2.0e+5}", "stage b: optimizer.l2_sp=200000 with lr=1e-05 pulls the weights beyond where"),
        ("optimizer: {lr: -1}", "stage b: optimizer.lr=-1: Input should be greater than 0"),
    ],
)
def test_wrong_stages_of_a_curriculum(tmp_path: Path, second: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        curriculum(tmp_path, second)


def test_a_stage_has_its_own_optimizer_and_start(tmp_path: Path) -> None:
    config = curriculum(tmp_path, "optimizer: {lr: 5.0e-4}, start: base")
    first, second = config.stages
    assert config.stage_optimizer(second) == config.optimizer.model_copy(update={"lr": 5e-4})
    assert config.stage_optimizer(first) == config.optimizer
    assert config.stage_base(second).base == "tiny"
    chained = curriculum(tmp_path, "fraction: 0.5")
    assert chained.stage_base(chained.stages[1]).base == "runs/x/stages/a/model"


def test_a_model_has_seen_what_the_stages_behind_it_have(tmp_path: Path) -> None:
    chained, alone = curriculum(tmp_path, "fraction: 0.5"), curriculum(tmp_path, "start: base")
    assert [chained.databases_seen(stage) for stage in chained.stages] == [["one"], ["one", "two"]]
    assert [alone.databases_seen(stage) for stage in alone.stages] == [["one"], ["two"]]
    assert chained.stages_behind(chained.stages[1]) == chained.stages
    replaying = curriculum(tmp_path, "start: base, replay: {one: 0.5}")
    assert replaying.databases_seen(replaying.stages[1]) == ["one", "two"]
    assert replaying.stages_behind(replaying.stages[1]) == replaying.stages[1:]


def test_a_stage_says_what_trains(tmp_path: Path) -> None:
    first, second = curriculum(tmp_path, "trains: lora").stages
    assert (first.trains, first.lora) == ("all", None)
    assert second.lora == LoraConfig()
    (_, second) = curriculum(tmp_path, "trains: lora, lora: {rank: 4, alpha: 8}").stages
    assert second.lora == LoraConfig(rank=4, alpha=8)


def test_replay_takes_its_share_of_all_samples(tmp_path: Path) -> None:
    config = curriculum(tmp_path, "replay: {one: 0.25}")
    weights = stage_weights(config.stages[1], {"two": 700, "one": 30})
    assert weights == {"two": 0.75, "one": 0.25}
    assert Order({"two": 700, "one": 30}, 0, weights).shares() == {"one": 0.25, "two": 0.75}
    weighed = config.stages[1].model_copy(update={"databases": ["two", "x"], "weights": {"two": 3, "x": 1}})
    assert stage_weights(weighed, {}) == {"two": 0.75 * 0.75, "x": 0.75 * 0.25, "one": 0.25}
