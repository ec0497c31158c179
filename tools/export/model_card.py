"""MODEL_CARD.md: what a model is, what it was trained on, and under which licences, for people and for the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.manifest import Manifest
from evaluation.downstream.result import results_of
from evaluation.report import Report
from evaluation.report_figures import said
from launch.config import MANIFEST_FILE
from launch.lineage import LINEAGE_FILE
from launch.training_data import Training
from models.base import noise_schedule, resolution_of
from models.record import HINT_COLOURS
from tools.export.masks import mask_palette
from tools.export.parity import Parity
from tools.export.source import Source

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# The identifiers of the hub, where a licence has one: https://huggingface.co/docs/hub/repositories-licenses.
HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC0": "cc0-1.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
}
# Made by this project, under Apache-2.0.
OWN_BASES = {"tiny"}
MAX_PROMPTS = 40
LABELS = {
    "text": "embedding of a prompt",
    "prediction": "prediction of the UNet",
    "prediction_with_control": "the same with a mask",
    "latents": "latents of an image",
    "image_levels": "the image, grey levels of 255",
    "image_levels_mean": "the same on average",
}


def model_card(source: Source, training: Training, parity: Parity | None = None) -> str:
    """Return the card, with the hub's header of YAML. parity: of a bundle's graphs."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    record, schedule = source.record or {}, noise_schedule(source.config)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        header={"license": hub_licence(training), "license_name": hub_licence_name(training), "tags": _tags(training)},
        name=source.name,
        warnings=warnings_of(training, has_record=source.record is not None),
        resolution=resolution_of(source.config),
        has_controlnet=source.has_controlnet,
        prediction_type=schedule.prediction_type,
        num_timesteps=schedule.num_timesteps,
        zero_terminal_snr=schedule.has_zero_terminal_snr,
        commit=record.get("commit"),
        base=", ".join(Path(base).name if Path(base).is_absolute() else base for base in training.bases),
        facts=_facts(record),
        databases=training.databases,
        prompts=training.prompts[:MAX_PROMPTS],
        num_prompts=training.num_prompts,
        has_lineage=(source.base.folder / LINEAGE_FILE).is_file(),
        mask_classes=[one["name"] for one in _palette(source, training)],
        metrics=_metrics(record),
        splits=_splits(source.base.folder, training),
        report=Report.of_model(source.base.folder),
        downstream=_downstream(source.base.folder),
        parity=parity
        and [
            (LABELS[key], f"{error:.2g}", f"{parity.limits[key]:.2g}")
            for key, error in parity.errors.items()
            if error is not None
        ],
        simulated=training.is_simulated,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def warnings_of(training: Training, *, has_record: bool) -> list[str]:
    """Return what a reader must know first, a sentence each."""
    found = []
    simulated = [one["database"] for one in training.databases if one["simulated"]]
    if training.is_simulated:
        found.append("SIMULATED. Trained on simulated images only.")
    elif simulated:
        found.append(
            f"PARTLY SIMULATED: the images of {', '.join(simulated)} are simulated. What it draws of them looks like"
            " the simulator's, not like a scanner's."
        )
    if restricted := [database for database in training.databases if is_non_commercial(database["licence"])]:
        names = ", ".join(f"{one['database']} ({one['licence']})" for one in restricted)
        found.append(f"NON-COMMERCIAL: this model may not be used commercially, because of the licence of {names}.")
    if unclear := [one["database"] for one in training.databases if is_unclear(one["licence"])]:
        found.append(f"LICENCE NOT CLEAR of the data {', '.join(unclear)}: find out before you pass this model on.")
    if not has_record or (training.unrecorded and not training.databases):
        found.append("NOT KNOWN: nothing says what this model was trained on, nor under which licences.")
    elif training.unrecorded:
        found.append(f"PARTLY NOT KNOWN: what {', '.join(training.unrecorded)} was trained on was not recorded.")
    return found


def is_non_commercial(licence: str) -> bool:
    """Return whether a licence, in words, forbids commercial use: it or one of several says so."""
    return bool(
        re.search(r"non[- ]?commercial|\bNC\b|for research|research (use|only|purposes)", licence, re.IGNORECASE)
    )


def is_unclear(licence: str) -> bool:
    """Return whether nobody can tell what a licence, in words, allows."""
    return bool(re.search(r"unclear|not known|on request|on registration|the column licence|mirror", licence, re.I))


def hub_licence(training: Training) -> str:
    """Return the hub's identifier of the licence; "other" for several, or one that it has no name for.

    A base of others has a licence too, which nothing here knows.
    """
    licences = {database["licence"] for database in training.databases}
    if len(licences) == 1 and not training.unrecorded and set(training.bases) <= OWN_BASES:
        return HUB_LICENCES.get(next(iter(licences)), "other")
    return "other" if licences else "unknown"


def hub_licence_name(training: Training) -> str | None:
    """Return what the hub shows beside "other"."""
    if hub_licence(training) != "other":
        return None
    restricted = any(is_non_commercial(database["licence"]) for database in training.databases)
    return "non-commercial-see-card" if restricted else "several-see-card"


def _tags(training: Training) -> list[str]:
    tags = ["ultrasound", "stable-diffusion", "text-to-image", "sonoshard"]
    tags += ["simulated-data"] if any(one["simulated"] for one in training.databases) else []
    restricted = any(is_non_commercial(database["licence"]) for database in training.databases)
    return [*tags, "non-commercial"] if restricted else tags


def _palette(source: Source, training: Training) -> list[dict[str, Any]]:
    has_names = bool(training.palette or (source.record or {}).get(HINT_COLOURS))
    return mask_palette(source, training) if has_names else []


def _splits(model: Path, training: Training) -> list[tuple[str, list[str]]]:
    """Return images and patients of each split, by database, as the run's manifest beside the model has them."""
    stages = model.resolve().parent.parent
    path = stages.parent / MANIFEST_FILE
    if stages.name != "stages" or not path.is_file():
        return []
    rows = Manifest.read(path).rows
    found = []
    known = {row.database for row in rows}
    for name in (one["database"] for one in training.databases if one["database"] in known):  # not of earlier runs
        counts = []
        for split in ("train", "validation", "test"):
            own = [row for row in rows if (row.database, row.split) == (name, split)]
            counts.append(f"{len(own)} of {len({row.cluster for row in own})}")
        found.append((name, counts))
    return found


def _downstream(model: Path) -> list[tuple[str, str, str, str]]:
    """Return what this stage's images were found to be of use for: a row of each network, as it is now."""
    found = []
    for result in results_of(model):
        for of in result.databases:
            for arm in of.arms:
                gain = ""
                if arm.against is not None:
                    gain = f"{said(arm.against.gain.model_dump())} over {arm.baseline}: {arm.against.verdict}"
                what = f"{result.experiment}, {of.name}: {result.measure} on {arm.num_tested} of {arm.tested_on}"
                found.append((what, arm.name, said(arm.reached.model_dump()), gain))
    return found


def _facts(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = {
        "stage": "stage",
        "kind": "what trained",
        "steps": "optimizer steps",
        "epochs": "epochs",
        "batch.global_size": "images of a step",
        "optimizer.name": "optimizer",
        "trains": "parameters that trained",
        "fraction": "share of the training images",
        "seed": "seed",
        "merge": "merge of",
        "method": "method of the merge",
    }
    facts = [(label, record[key]) for key, label in names.items() if record.get(key) is not None]
    return [(label, _listed(value)) for label, value in facts]


def _metrics(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"validation_loss": "validation loss", "validation_losses": "validation losses", "metrics": "measured"}
    return [(label, _listed(record[key])) for key, label in names.items() if record.get(key) is not None]


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_listed(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_listed(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
