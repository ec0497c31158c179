"""The evaluation of a stage or a folder of images: report.html, metrics.json and TensorBoard's curves.

Of a stage they lie in RUN/evaluation/STAGE, of a folder in RUN/evaluation/folders/NAME, so that neither replaces the
other's.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from data.durable import replacing
from data.errors import DataError
from data.manifest import Manifest, ManifestRow
from data.splits import HELD_OUT
from evaluation.classifier import ClassifierConfig
from evaluation.evenly import evenly
from evaluation.features import torchscript_features
from evaluation.generated_images import ALL, GeneratedImages, count_generated, read_generated
from evaluation.judgement import Judgement, judge
from evaluation.mask_judgement import MaskJudgement, judge_masks
from evaluation.measures import MEASURES
from evaluation.real_images import RealImages
from evaluation.realism import MIN_CLUSTERS
from evaluation.reconstruction import reconstructed
from evaluation.report_figures import Figure, figures, limits
from evaluation.report_page import NUM_WORST, REPORT_FILE, write_page
from evaluation.segmenter import SegmenterConfig
from evaluation.stage_images import FOLDER, FOLDERS, draw_stage, stage_to_draw
from evaluation.verdicts import Verdict, of_copies, of_distance, of_labels, of_mask, of_unseen_mask
from launch.config import RunConfig
from launch.run_steps import steps_before, steps_taken
from launch.stage_config import StageConfig
from launch.tracking import tensorboard_folder
from models.base import resolution_of
from models.record import record_sha256
from models.stable_diffusion import load_vae

METRICS_FILE = "metrics.json"
# Raised when a figure of metrics.json means something else.
VERSION = 4
NUM_DRAWN = 256
NOT_DRAWN = "none of the images is of it"


@dataclass(frozen=True)
class Report:
    """What an evaluation of so many images left. verdicts: by what they are of, the page's own order."""

    page: Path
    metrics: Path
    num_images: int
    verdicts: dict[str, Verdict]

    @classmethod
    def of_model(cls, model: Path) -> Self | None:
        """Return the report of a stage's model, RUN/stages/NAME/model; None where there is none of what it is now."""
        stage = model.resolve().parent
        folder = stage.parent.parent / FOLDER / stage.name
        page, metrics = folder / REPORT_FILE, folder / METRICS_FILE
        if not (page.is_file() and metrics.is_file()):
            return None
        found = json.loads(metrics.read_text(encoding="utf-8"))
        if found["version"] != VERSION or found["model_sha256"] != record_sha256(model):
            return None
        verdicts = {of: Verdict.model_validate(verdict) for of, verdict in found["verdicts"].items()}
        return cls(page, metrics, found["num_images"], verdicts)

    def figures(self) -> list[Figure]:
        """Return the figures behind the verdicts."""
        return figures(json.loads(self.metrics.read_text(encoding="utf-8")))

    def limits(self) -> list[str]:
        """Return what the evaluation could not have seen, a sentence each."""
        return limits(json.loads(self.metrics.read_text(encoding="utf-8")))

    def print(self) -> None:
        """Say on the terminal what was found, and where to read on."""
        width = max(map(len, self.verdicts))
        for of, verdict in self.verdicts.items():
            print(f"{of:<{width}}  {verdict.text}")
        print(f"report   {self.page}\nfigures  {self.metrics}")


def evaluate_run(
    config: RunConfig,
    num_images: int | None = None,
    *,
    stage_name: str | None = None,
    images: Path | None = None,
    features: Path | None = None,
    classifier: ClassifierConfig | None = None,
    segmenter: SegmenterConfig | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Judge images against the run's real ones, and write what was found.

    Images are those of a folder, or are drawn by a stage (None: the last that is finished) from the noise of seeds 0 to
    `num_images` - 1, with the prompts and masks of held-out images. num_images: None: 256 of a stage, all of a folder;
    of a folder they are spread evenly. They are compared with the validation and test splits, and with the training
    split, of those databases that they are of.
    features: a TorchScript network to compare by; None: a classifier trained here.
    Raises: ConfigError if there is no such stage; DataError if there are too few images, or one cannot be read.
    """
    manifest = Manifest.read(config.manifest_path)
    resolution = resolution_of(config.model)
    of_features = torchscript_features(features) if features else None
    if of_features is not None:
        of_features.of(np.zeros((1, resolution, resolution), np.uint8))  # hours of drawing may lie before the first
    stage = stage_to_draw(config, stage_name) if images is None else None
    databases = list(config.databases) if stage is None else config.databases_seen(stage)
    training, held_out = (
        [row for row in manifest.rows if row.database in databases and row.split in splits]
        for splits in (("train",), HELD_OUT)
    )
    # A folder's images may be of no database that is known, and are compared with all together.
    _refuse_too_few(databases, training, held_out, are_together=stage is None)
    subject = _subject_of(config, stage, images, num_images, say)
    generated = read_generated(subject.folder, config.encode, resolution, subject.places, manifest.palette)
    generated = generated.among(sorted({row.database for row in held_out}))
    # Of what was not drawn nothing is said, nor is anything compared with it.
    undrawn = (
        {} if ALL in generated.databases else {name: NOT_DRAWN for name in databases if name not in generated.databases}
    )
    training, held_out = ([row for row in rows if row.database not in undrawn] for rows in (training, held_out))
    if stage is not None and stage.has_hints:
        held_out = [row for row in held_out if row.masks]
    say(f"{len(training)} training and {len(held_out)} held-out images, to compare with")
    real_training, real_held_out = (RealImages.read(rows, config.encode, resolution) for rows in (training, held_out))
    judgement = judge(
        generated,
        real_training,
        real_held_out,
        features=of_features,
        config=classifier or ClassifierConfig(seed=config.seed),
        seed=config.seed,
        say=say,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = cache(partial(load_vae, config.model, device, torch.float32))
    masks = judge_masks(
        generated,
        training,
        held_out,
        manifest.palette,
        config.encode,
        segmenter or SegmenterConfig(seed=config.seed),
        lambda real_NHW: reconstructed(vae(), real_NHW, config.seed),
        seed=config.seed,
        say=say,
    )
    judgement = replace(judgement, left_out={**judgement.left_out, **undrawn})
    return _write_report(config, subject, generated, real_training, real_held_out, judgement, masks)


@dataclass(frozen=True)
class _Subject:
    """Images to judge: those of `folder` at `places`, in words `title`.

    name: of the folder within RUN/evaluation that the report goes to. step: of the run, for TensorBoard.
    model_sha256: of the record of the model that drew them; None of a folder's images.
    """

    name: str
    folder: Path
    places: Sequence[int]
    step: int
    title: str
    model_sha256: str | None = None


def _subject_of(
    config: RunConfig,
    stage: StageConfig | None,
    images: Path | None,
    num_images: int | None,
    say: Callable[[str], None],
) -> _Subject:
    """Return the images of a folder or, where a stage is given, those that it draws here; see `evaluate_run`."""
    if stage is not None:
        count = num_images or NUM_DRAWN
        return _Subject(
            name=stage.name,
            folder=draw_stage(config, stage, count, say),
            places=range(count),
            step=steps_before(config, stage) + steps_taken(config, stage),
            title=f"{count} images of stage {stage.name}",
            model_sha256=record_sha256(config.stage_model(stage)),
        )
    assert images is not None
    count, name = count_generated(images), images.resolve().name
    places = evenly(num_images or count, count)
    of_all = "" if len(places) == count else f" of {count}"
    return _Subject(
        name=f"{FOLDERS}/{name}",
        folder=images,
        places=places,
        step=sum(steps_taken(config, each) for each in config.stages),
        title=f"{len(places)}{of_all} images of the folder {name}",
    )


def _refuse_too_few(
    databases: Sequence[str], training: Sequence[ManifestRow], held_out: Sequence[ManifestRow], *, are_together: bool
) -> None:
    """Raise DataError if there is nothing to compare with, before anything is drawn.

    are_together: whether patients of several databases count together.
    """
    clusters = {(None if are_together else row.database, row.cluster) for row in held_out}
    num_patients = max(Counter(group for group, _ in clusters).values(), default=0)
    if not training or num_patients < MIN_CLUSTERS:
        raise DataError(
            f"{', '.join(databases)} have {len(training)} training images and {num_patients} held-out patients at most,"
            f" needed some and {MIN_CLUSTERS}: give prepare.test_fraction a share and prepare in another folder"
        )


def _write_report(
    config: RunConfig,
    subject: _Subject,
    generated: GeneratedImages,
    training: RealImages,
    held_out: RealImages,
    judgement: Judgement,
    masks: list[MaskJudgement],
) -> Report:
    """Write the page, metrics.json, a sheet of the masks of each database, and TensorBoard's curves."""
    out = config.run / FOLDER / subject.name
    verdicts = _verdicts(judgement, masks)
    without_patients = sorted({row.database for row in held_out.rows if row.patient is None})
    metrics = _metrics(
        subject,
        generated,
        judgement,
        masks,
        verdicts,
        worst=_worst(judgement, generated, training),
        without_patients=without_patients,
    )
    with replacing(out / METRICS_FILE) as temporary:
        temporary.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    for of in masks:
        with replacing(out / sheet_file(of.database)) as temporary:
            of.sheet.save(temporary, format="PNG")
    _write_scalars(config, subject.name, metrics, subject.step)
    write_page(
        out / REPORT_FILE,
        subject=subject.title,
        generated=generated,
        training=training,
        held_out=held_out,
        judgement=judgement,
        masks=masks,
        verdicts=verdicts,
        are_simulated={"simulated" in row.flags for row in [*training.rows, *held_out.rows]},
        without_patients=without_patients,
    )
    return Report(out / REPORT_FILE, out / METRICS_FILE, len(generated), verdicts)


def sheet_file(database: str) -> str:
    """Return the name of the picture that shows how a database's masks are followed."""
    return f"masks-{database}.png"


def _verdicts(judgement: Judgement, masks: list[MaskJudgement]) -> dict[str, Verdict]:
    found = {}
    for of in judgement.databases:
        found[f"{of.name}: ultrasound statistics"] = of_distance(of.distance)
        found[f"{of.name}: features"] = of_distance(of.fid)
        if of.labels:
            found[f"{of.name}: labels"] = of_labels(of.labels)
    for each in masks:
        for name, agreement in each.agreement.classes.items():
            found[f"{each.database}: mask of {name}"] = of_mask(agreement)
        for name in each.agreement.unseen:
            found[f"{each.database}: mask of {name}"] = of_unseen_mask()
    return {**found, "copies of training images": of_copies(judgement.copies)}


def _metrics(
    subject: _Subject,
    generated: GeneratedImages,
    judgement: Judgement,
    masks: list[MaskJudgement],
    verdicts: dict[str, Verdict],
    *,
    worst: list[dict[str, Any]],
    without_patients: list[str],
) -> dict[str, Any]:
    """Return what metrics.json holds. worst: images that look like copies."""
    found = judgement.to_json()
    return {
        "version": VERSION,
        "of": subject.name,
        "num_images": len(generated),
        "verdicts": {of: verdict.model_dump() for of, verdict in verdicts.items()},
        "measures": {name: measure.to_json() for name, measure in MEASURES.items()},
        **found,
        "memorisation": {**found["memorisation"], "worst": worst},
        "masks": {each.database: each.agreement.to_json() for each in masks},
        "without_patients": without_patients,
        "model_sha256": subject.model_sha256,
    }


def _worst(judgement: Judgement, generated: GeneratedImages, training: RealImages) -> list[dict[str, Any]]:
    """Return the generated images that are nearest to a training image, and which one that is."""
    found = []
    for place, space in judgement.copies.worst(NUM_WORST):
        nearest = judgement.copies.nearest[space]
        found.append(
            {
                "file": generated.files[place],
                "training_id": training.rows[int(nearest.places[place])].id,
                "is_mirrored": bool(nearest.is_mirrored[place]),
                "space": space,
                "ratio": float(nearest.ratios[place]),
                "database": generated.databases[place],
                "is_suspect": bool(judgement.copies.suspicion()[place] < 1),
            }
        )
    return found


def _write_scalars(config: RunConfig, name: str, metrics: dict[str, Any], step: int) -> None:
    """Write figures to TensorBoard, as a run of their own: one file per folder is read while it grows."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tensorboard_folder(config) / "evaluation" / name)) as writer:
        for database, of in metrics["databases"].items():
            for measure in ("distance", "statistics_kid", "fid", "kid"):
                for source in ("generated", "real"):
                    writer.add_scalar(f"evaluation/{database}/{measure}_{source}", of[measure][source]["value"], step)
            if of["labels"]:
                for source in ("generated", "real"):
                    accuracy = of["labels"][source]["balanced_accuracy"]["value"]
                    writer.add_scalar(f"evaluation/{database}/label_balanced_accuracy_{source}", accuracy, step)
        for database, of in metrics["masks"].items():
            for mask, found in of["classes"].items():
                for source in ("generated", "real"):
                    value = found[source]["dice"]["value"]
                    if value is not None:
                        writer.add_scalar(f"evaluation/{database}/dice_{mask}_{source}", value, step)
        for space in ("pixels", "features"):
            writer.add_scalar(f"evaluation/suspects_{space}", metrics["memorisation"][space]["share"], step)
