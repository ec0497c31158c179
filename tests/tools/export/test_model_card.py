"""The card says the licence, what is simulated and what is not known before anything else."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.manifest import Manifest, ManifestRow
from data.splits import Split
from evaluation.downstream.result import ArmResult, DatabaseResult, Downstream
from evaluation.intervals import Interval
from evaluation.measures import MEASURES
from evaluation.report import VERSION
from launch.databases import kinds
from launch.training_data import Training, training_of
from models.record import record_sha256
from tests.tools.export.conftest import TRAINING
from tools.export.model_card import is_non_commercial, is_unclear, model_card
from tools.export.source import open_source


def card(folder: Path, training: Training) -> tuple[dict[str, Any], str]:
    """Return the header and the rest."""
    _, header, text = model_card(open_source(str(folder), None), training).split("---\n", 2)
    return yaml.safe_load(header), text


def of_licence(licence: str, **changes: Any) -> Training:
    return replace(TRAINING, databases=[{**TRAINING.databases[0], "licence": licence, **changes}])


def test_simulated_data_of_our_own(controlled: Path) -> None:
    header, text = card(controlled, TRAINING)
    assert header["license"] == "apache-2.0"
    assert {"ultrasound", "simulated-data"} <= set(header["tags"])
    assert "Trained on simulated images only" in text[:200]
    assert "| sim | Simulated B-mode images | 20 | Apache-2.0 |" in text
    assert "validation loss: 0.25" in text
    assert "`breast tumor, benign` (benign)" in text
    assert "background, lesion, left ventricle" in text


def test_the_built_in_model_says_what_it_has_seen() -> None:
    source = open_source("tiny", None)
    header, text = card(source.base.folder, training_of(source.record, "tiny"))
    assert header["license"] == "apache-2.0"
    assert "Trained on simulated images only" in text[:200]
    assert "| base | tiny |" in text
    assert "| 28000 | Apache-2.0 |" in text


def test_a_mix_of_real_and_simulated_images_says_so_before_anything_else(controlled: Path) -> None:
    real = {**TRAINING.databases[0], "database": "echo", "title": "Echocardiograms", "simulated": False}
    header, text = card(controlled, replace(TRAINING, databases=[*TRAINING.databases, real]))
    assert "PARTLY SIMULATED: the images of sim are simulated" in text[:200]
    assert "Trained on simulated images only" not in text
    assert "simulated-data" in header["tags"]


def row(split: Split, number: int, patient: int) -> ManifestRow:
    return ManifestRow(
        id=f"sim/{number}",
        image=Path("gone.png"),
        prompts=("",),
        label="",
        database="sim",
        sha256="",
        masks_sha256=(),
        width=1,
        height=1,
        cluster=f"sim/{patient}",
        split=split,
    )


def spread(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def test_the_splits_and_the_figures_of_the_run_are_on_it(controlled: Path, tmp_path: Path) -> None:
    model = tmp_path / "run" / "stages" / "masks" / "model"
    shutil.copytree(controlled, model)
    rows = (row("train", 0, 0), row("train", 1, 0), row("train", 2, 1), row("test", 3, 2), row("validation", 4, 3))
    Manifest(rows, ("background",)).write(tmp_path / "run" / "manifest.parquet")
    distance = {"generated": spread(0.25), "real": spread(0.2)}
    space = {"num_copies": 2, "share": 0.05, "low": 0.01, "high": 0.1, "expected": 0.01, "expected_high": 0.04}
    metrics = {
        "version": VERSION,
        "model_sha256": sha256((model / "sonoshard.json").read_bytes()).hexdigest(),
        "num_images": 40,
        "verdicts": {
            name: {"level": "fair", "text": f"so so, {name}"}
            for name in ("sim: ultrasound statistics", "sim: features", "sim: labels", "sim: mask of lesion", "copies")
        },
        "measures": {name: measure.to_json() for name, measure in MEASURES.items()},
        "databases": {
            "sim": {
                **{"distance": distance, "fid": distance, "num_generated": 40, "num_real": 2, "num_patients": 2},
                "labels": {"chance": 0.5, **{of: {"balanced_accuracy": spread(0.7)} for of in ("generated", "real")}},
            }
        },
        "masks": {
            "sim": {
                "classes": {
                    "lesion": {
                        "generated": {"dice": spread(0.6)},
                        "real": {"dice": spread(0.9)},
                        "reconstructed": {"dice": spread(0.8)},
                    }
                },
                "unseen": ["head"],
            }
        },
        "left_out": {"echo": "1 held-out patient, needed 4"},
        "without_patients": ["sim"],
        "memorisation": {of: {**space, "smallest_found": 0.125} for of in ("pixels", "features")},
    }
    evaluation = tmp_path / "run" / "evaluation"
    (evaluation / "masks").mkdir(parents=True)
    (evaluation / "masks" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (evaluation / "masks" / "report.html").write_text("", encoding="utf-8")
    reached = Interval(value=0.81, low=0.7, high=0.9)
    arm = ArmResult(
        **{"name": "real + generated", "num_real": 3, "num_generated": 40, "is_augmented": False, "num_tested": 1},
        **{"tested_on": "test split", "num_patients": 1, "reached": reached, "of_seeds": (0.81,)},
    )
    for experiment, of_model in (("classification", record_sha256(model)), ("generated-only", "of an earlier one")):
        found = Downstream(
            **{"experiment": experiment, "measure": "AUC", "images_of": "stage masks", "resolution": 64},
            **{"num_seeds": 1, "network": {}, "left_out": {}, "model_sha256": of_model},
            databases=(DatabaseResult(name="sim", classes=("a", "b"), arms=(arm,)),),
        )
        path = evaluation / "masks" / f"downstream-{experiment}.json"
        path.write_text(found.model_dump_json(), encoding="utf-8")
    _, text = card(model, TRAINING)
    assert "| sim | 3 of 2 | 1 of 1 | 1 of 1 |" in text
    assert "| 0.25 (0.24 to 0.26) | 0.2 (0.19 to 0.21) | so so, sim: features |" in text
    assert "by chance 0.5 | 0.7 (0.69 to 0.71) | 0.7 (0.69 to 0.71) | so so, sim: labels |" in text
    assert "real ones through the VAE | 0.6 (0.59 to 0.61) | 0.8 (0.79 to 0.81) |" in text
    assert "2 copies, by pixels | 5.0 % (1.0 to 10.0) | 1.0 %, at most 4.0 |" in text
    assert "- sim: 40 images were compared with 2 held-out ones of 2 patients." in text
    assert "- sim does not tell its patients: of images that look alike none is on both sides" in text
    assert "- echo was not judged: 1 held-out patient, needed 4." in text
    assert "in less than 12.5 % of what it draws" in text
    assert "| classification, sim: AUC on 1 of test split | real + generated | 0.81 (0.7 to 0.9) |" in text
    assert "generated-only" not in text, "that was of an earlier model of the stage"


def test_a_non_commercial_database_makes_a_non_commercial_model(controlled: Path) -> None:
    licence = "research use agreement, non-commercial"
    header, text = card(controlled, of_licence(licence, database="echo", simulated=False))
    assert header["license"] == "other"
    assert header["license_name"] == "non-commercial-see-card"
    assert "non-commercial" in header["tags"]
    assert "NON-COMMERCIAL: this model may not be used commercially, because of the licence of echo" in text[:300]
    assert "simulated" not in text


def test_a_base_of_others_is_not_licensed_by_us(controlled: Path) -> None:
    header, text = card(controlled, replace(TRAINING, bases=["someone/model"]))
    assert header["license"] == "other"
    assert "| base | someone/model |" in text


def test_what_is_not_known_is_said_loudly(plain: Path, controlled: Path) -> None:
    header, text = card(plain, Training(bases=["plain"]))
    assert header["license"] == "unknown"
    assert "NOT KNOWN: nothing says what this model was trained on" in text[:200]
    header, text = card(controlled, replace(TRAINING, unrecorded=["an old stage"]))
    assert header["license"] == "other"
    assert "PARTLY NOT KNOWN: what an old stage was trained on was not recorded" in text[:300]


@pytest.mark.parametrize(
    ("licence", "restricted", "unclear"),
    [
        ("CC BY 4.0", False, False),
        ("Apache-2.0", False, False),
        ("CC BY-NC-SA 4.0", True, False),
        ("unclear: CC BY-NC 3.0 or CC BY 4.0, by version", True, True),
        ("research use agreement, non-commercial", True, False),
        ("on request, for research: see the agreement you signed", True, True),
        ("unclear: MIT on one mirror", False, True),
    ],
)
def test_licences_in_words(licence: str, restricted: bool, unclear: bool) -> None:
    assert is_non_commercial(licence) == restricted
    assert is_unclear(licence) == unclear


def test_every_licence_of_a_database_is_clear_or_said_not_to_be() -> None:
    clear = {"CC BY 4.0", "Apache-2.0", "research use agreement, non-commercial", "CC BY 4.0, non-commercial"}
    licences = {kind.about.licence for kind in kinds().values()}
    assert {licence for licence in licences if not is_unclear(licence)} <= clear
