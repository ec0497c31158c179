"""What a model was trained on accumulates over stages and merges, within bounds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from launch import training_data
from launch.config import load_config
from launch.run_shards import open_shards
from launch.training_data import Training, bounded, stage_training, training_of, training_until, united


def training(name: str, images: int = 10, licence: str = "CC BY 4.0") -> Training:
    database = {
        "database": name,
        "kind": "busi",
        "title": "t",
        "licence": licence,
        "simulated": False,
        "images": images,
    }
    prompts = [{"prompt": f"{name} {label}", "label": label, "database": name} for label in ("benign", "malignant")]
    return Training([database], prompts, 2, ["background", "lesion"], [], ["tiny"])


def record(*args: Any) -> dict[str, Any]:
    return {"stage": args[0], "training": asdict(training(*args))}


def test_a_record_gives_back_what_it_holds() -> None:
    assert training_of(record("busi"), "x") == training("busi")


def test_stages_add_up_and_a_database_stands_there_once() -> None:
    both = united([training("busi", 10), training("bus_bra", 5), training("busi", 30)])
    assert [(one["database"], one["images"]) for one in both.databases] == [("busi", 30), ("bus_bra", 5)]
    assert len(both.prompts) == both.num_prompts == 4
    assert both.bases == ["tiny"]
    assert not both.is_simulated


def test_licences_add_up_so_that_none_is_lost() -> None:
    restricted, simulated = training("own", 500, "CC BY-NC 4.0"), training("own", 100)
    simulated.databases[0]["simulated"] = True
    (database,) = united([training("own", 1000), restricted, simulated]).databases
    assert (database["images"], database["licence"], database["simulated"]) == (1000, "CC BY 4.0; CC BY-NC 4.0", False)
    assert united([simulated, simulated]).databases[0]["simulated"]


def test_mask_classes_add_up_where_a_controlnet_was_trained() -> None:
    plain, *masked = (training("camus", images) for images in (40, 30, 20))
    for one, classes in zip(masked, (["myocardium"], ["left atrium", "myocardium"]), strict=True):
        one.databases[0]["mask_classes"] = classes
    (database,) = united([plain, *masked]).databases
    assert (database["images"], database["mask_classes"]) == (40, ["left atrium", "myocardium"])
    assert masked[0].databases[0]["mask_classes"] == ["myocardium"], "what it was made of is as it was"
    assert "mask_classes" not in united([plain, plain]).databases[0]


def test_a_stage_tells_its_databases_licences_and_prompts(prepared: Path) -> None:
    config = load_config(prepared)
    stage, shards = config.stages[0], open_shards(config)
    found = stage_training(config, stage, shards)
    entries = shards.entries("busi", "train")
    about = config.databases["busi"].about
    assert found.databases == [
        {
            "database": "busi",
            "kind": "busi",
            "title": about.title,
            "licence": about.licence,
            "simulated": False,
            "images": len(entries),
        }
    ]
    assert {(one["prompt"], one["label"]) for one in found.prompts} == {
        (shards.prompts[number], entry.label) for entry in entries for number in entry.prompts
    }
    assert len(found.prompts) == found.num_prompts
    assert found.palette[:2] == ["background", "lesion"]
    masked = stage.model_copy(update={"kind": "controlnet"})
    assert stage_training(config, masked, shards).databases == [{**found.databases[0], "mask_classes": ["lesion"]}]
    whole = training_until(config, stage, shards, config.model.base)
    assert (whole.databases, whole.bases) == (found.databases, [config.model.base])
    moved = config.model_copy(update={"run": prepared.parent / "elsewhere", "shards": config.shards_path})
    assert stage_training(moved, stage, shards) == found, "the database's own licence where there is no manifest"


def test_merges_are_walked_to_their_ends() -> None:
    inner = {"parents": [record("camus"), {"stage": "old", "steps": 3}]}
    found = training_of({"merge": {}, "parents": [inner, record("busi"), None]}, "soup")
    assert [one["database"] for one in found.databases] == ["camus", "busi"]
    assert found.unrecorded == ["old"]
    assert found.bases == ["tiny", "parent 3 of soup"]


def test_a_model_without_a_record_is_a_base_and_an_older_record_says_so() -> None:
    assert training_of(None, "org/model") == Training(bases=["org/model"])
    assert training_of({"steps": 5}, "runs/old") == Training(unrecorded=["runs/old"])


def test_prompts_are_bounded_evenly_by_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "MAX_PROMPTS", 10)
    prompts = [
        {"prompt": f"{label} {number}", "label": label, "database": "d"}
        for label, count in (("many", 50), ("more", 80), ("few", 2))
        for number in range(count)
    ]
    kept = bounded(prompts)
    assert [one["label"] for one in kept] == ["many"] * 4 + ["more"] * 4 + ["few"] * 2
    assert kept[0]["prompt"] == "many 0"
    total = united([Training([], kept, len(prompts))])
    assert total.num_prompts == 132
