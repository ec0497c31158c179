"""The page that a clinician reads: pictures first, then each figure beside that of real images; one file, offline."""

# N images, H W height and width in pixels

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.durable import replacing
from evaluation.evenly import evenly
from evaluation.generated_images import ALL, GeneratedImages
from evaluation.judgement import DatabaseJudgement, Judgement
from evaluation.mask_judgement import MaskJudgement
from evaluation.measures import MEASURES
from evaluation.pictures import Pair, distributions, montage, pair_sheet
from evaluation.real_images import RealImages
from evaluation.report_figures import patients_not_told
from evaluation.verdicts import MIN_PATIENTS, Verdict, of_copies, of_distance, of_labels, of_mask

REPORT_FILE = "report.html"
TEMPLATE = Path(__file__).parent / "report.html.jinja"
NUM_EXAMPLES = 8
NUM_WORST = 20


def write_page(
    path: Path,
    *,
    subject: str,
    generated: GeneratedImages,
    training: RealImages,
    held_out: RealImages,
    judgement: Judgement,
    masks: Sequence[MaskJudgement],
    verdicts: Mapping[str, Verdict],
    are_simulated: set[bool],
    without_patients: Sequence[str],
) -> None:
    """Replace the page at `path`. subject: what was judged. are_simulated: whether real images are, {True}: all.

    without_patients: databases that do not tell whose images they are.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        subject=subject,
        all_simulated=are_simulated == {True},
        some_simulated=True in are_simulated,
        verdicts=verdicts,
        databases=[_database(of, generated, held_out, judgement) for of in judgement.databases],
        left_out=judgement.left_out,
        patients_not_told=[patients_not_told(name) for name in without_patients],
        features=judgement.features,
        masks=[{"name": of.database, "sheet": _data(of.sheet), "rows": list(_mask_rows(of))} for of in masks],
        copies=judgement.copies,
        copies_verdict=of_copies(judgement.copies),
        pairs=_data(pair_sheet(_pairs(judgement, generated, training))),
        measures=MEASURES,
        min_patients=MIN_PATIENTS,
        num_training=len(training),
        num_held_out=len(held_out),
    )
    with replacing(path) as temporary:
        temporary.write_text(html + "\n", encoding="utf-8")


def _database(
    of: DatabaseJudgement, generated: GeneratedImages, held_out: RealImages, judgement: Judgement
) -> dict[str, Any]:
    places = generated.places_of(of.name)
    real = held_out.where(lambda row: of.name in (row.database, ALL))
    values = judgement.values[of.name]
    return {
        "of": of,
        "generated": _data(montage(_spread(generated.images_NHW[places]), NUM_EXAMPLES)),
        "real": _data(montage(_spread(real.images_NHW), NUM_EXAMPLES)),
        "distributions": _data(distributions(values.generated_ND, values.real_ND, of.name)),
        "rows": [
            (MEASURES["distance"], of.distance, of_distance(of.distance)),
            (MEASURES["fid"], of.fid, of_distance(of.fid)),
            (MEASURES["kid"], of.kid, of_distance(of.kid)),
        ],
        "statistics": [(MEASURES[name], found, of_distance(found)) for name, found in of.statistics.items()],
        "labels_verdict": of_labels(of.labels) if of.labels else None,
    }


def _mask_rows(of: MaskJudgement) -> list[dict[str, Any]]:
    return [
        {"name": name, "of": found, "verdict": of_mask(found), "is_known": not math.isnan(found.unrelated_dice.value)}
        for name, found in of.agreement.classes.items()
    ]


def _pairs(judgement: Judgement, generated: GeneratedImages, training: RealImages) -> list[Pair]:
    suspicion = judgement.copies.suspicion()
    found = []
    for place, space in judgement.copies.worst(NUM_WORST):
        nearest = judgement.copies.nearest[space]
        image_HW = training.images_NHW[int(nearest.places[place])]
        is_mirrored = bool(nearest.is_mirrored[place])
        note = f"{suspicion[place]:.2f} in {space}{', mirrored' if is_mirrored else ''}"
        shown = np.ascontiguousarray(image_HW[:, ::-1]) if is_mirrored else image_HW
        found.append(Pair(generated.images_NHW[place], shown, note, bool(suspicion[place] < 1)))
    return found


def _spread(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images_NHW[evenly(NUM_EXAMPLES, len(images_NHW))]


def _data(picture: Any) -> str:
    """Return a picture, or a figure, as a data: address."""
    content = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(content, format="PNG")
    else:
        picture.savefig(content, format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
