"""The card says the licence, what is simulated and what is not known before anything else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.databases import kinds
from launch.training_data import Training
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
