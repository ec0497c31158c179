"""A run that starts from another run's model keeps to what that one trained on and held out."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from launch.config import RunConfig, load_config
from launch.dry_run import check_run
from launch.errors import ConfigError
from launch.facts import refuse_other_facts, stage_facts
from launch.lineage import SIDES, Side, files_of_lineage, write_lineage
from launch.prepare import encode_databases, prepare_databases
from launch.run_shards import open_shards


@pytest.fixture
def earlier(fresh: Path) -> Path:
    """The model of a finished stage, as far as lineage goes: the base, with the lineage that the stage writes."""
    config = load_config(fresh)
    (stage,) = config.stages
    write_lineage(config, stage, open_shards(config), config.model.base)
    model = Path(shutil.copytree(fresh.parent / "model", fresh.parent / "earlier"))
    for name, content in files_of_lineage(config.stage_path(stage)).items():
        (model / name).write_bytes(content)
    return model


def next_run(fresh: Path, earlier: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a run from the earlier model, with a manifest and shards of its own."""
    config = load_config(fresh, [f"run={fresh.parent / 'next'}", f"model.base={earlier}", *overrides])
    prepare_databases(config)
    encode_databases(config)
    return config


def read_table(config: Path, table: Path) -> None:
    """Let the configuration read its database from a table."""
    text = config.read_text(encoding="utf-8")
    text = text.replace(f"kind: busi, root: {table.parent}", f"kind: manifest, path: {table}")
    config.write_text(text, encoding="utf-8")


def test_with_the_same_splits_it_goes_on(fresh: Path, earlier: Path) -> None:
    assert "stage busi: 20 steps" in check_run(next_run(fresh, earlier), 1)


def test_with_splits_drawn_anew_it_is_refused(fresh: Path, earlier: Path) -> None:
    config = next_run(fresh, earlier, ["prepare.seed=1"])
    would, did = "stage busi would train on", "that were held out from the model it starts from"
    with pytest.raises(ConfigError, match=rf"^{would} \d+ images \(such as .*\) {did}, {earlier}, or that are copies"):
        check_run(config, 1)


def test_what_was_trained_on_cannot_be_held_out(fresh: Path, earlier: Path) -> None:
    # All that was held out stays held out, and more: what is trained on is a part of what was.
    config = load_config(fresh)
    shards = open_shards(config)
    held_out = [e.id for split in ("validation", "test") for e in shards.entries("busi", split)]
    rows = ["image,prompts,label,split"]
    for split in ("train", "validation", "test"):
        for number, entry in enumerate(shards.entries("busi", split)):
            where = "test" if entry.id in held_out or number < 2 else "train" if number % 2 else "validation"
            name = entry.id.removeprefix("busi/")
            rows.append(f"{name.split()[0]}/{name}.png,a,{entry.label},{where}")
    root = fresh.parent / "Dataset_BUSI_with_GT"
    (root / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    read_table(fresh, root / "table.csv")
    with pytest.raises(ConfigError, match=r"would hold out \d+ images .* that were trained on by the model it starts"):
        check_run(next_run(fresh, earlier), 1)


def test_a_part_leaves_the_rest_out_of_both(fresh: Path) -> None:
    config = load_config(fresh, ["stages.0.fraction=0.5"])
    shards = open_shards(config)
    whole_stage = config.stages[0].model_copy(update={"fraction": 1.0})
    for side in SIDES:
        part, whole = (
            set(Side.of_stage(config, stage, shards, side).ties) for stage in (config.stages[0], whole_stage)
        )
        assert part < whole if side == "trained" else part == whole


def test_copies_of_what_was_held_out_are_found_too(fresh: Path, earlier: Path) -> None:
    shards = open_shards(load_config(fresh))
    root = fresh.parent / "Dataset_BUSI_with_GT"
    rows = ["image,prompts,label,split"]
    for split in ("validation", "train"):
        for entry in shards.entries("busi", split):
            name = entry.id.removeprefix("busi/")
            with Image.open(root / name.split()[0] / f"{name}.png") as picture:
                copy = ImageOps.mirror(picture.convert("L"))
                copy.resize((round(0.8 * copy.width), round(0.8 * copy.height))).save(root / f"{name}.jpg", quality=85)
            rows.append(f"{name}.jpg,a,{entry.label},{'train' if split == 'validation' else 'validation'}")
    (root / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    text = fresh.read_text(encoding="utf-8").replace(
        f"kind: busi, root: {root}", f"kind: manifest, path: {root}/table.csv"
    )
    fresh.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"would train on \d+ images .* that were held out from the model it starts"):
        check_run(next_run(fresh, earlier), 1)


def test_it_names_nobody(fresh: Path, earlier: Path) -> None:
    content = (earlier / "lineage.safetensors").read_bytes()
    assert b"busi" not in content
    assert b"patient" not in content


def test_a_stage_does_not_go_on_after_the_splits_were_drawn_anew(fresh: Path) -> None:
    before = load_config(fresh)
    facts = stage_facts(before, before.stages[0], open_shards(before))
    before.manifest_path.unlink()
    anew = load_config(fresh, ["prepare.seed=1"])
    prepare_databases(anew)
    encode_databases(anew)
    other = stage_facts(anew, anew.stages[0], open_shards(anew))
    assert other["samples"] == facts["samples"], "the numbers alone do not tell"
    with pytest.raises(ConfigError, match="checkpoints was trained on other images than the shards hold now, or with"):
        refuse_other_facts(facts, other, Path("checkpoints"))
    refuse_other_facts(facts, facts, Path("checkpoints"))
