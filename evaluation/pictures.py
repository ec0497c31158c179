"""The pictures of the report: images in rows, pairs of a generated and a training image, distributions."""

# N images, H W height and width in pixels, D statistics

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evaluation.measures import MEASURES
from evaluation.ultrasound_statistics import STATISTICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 4
MIN_SIDE = 128
PAIR_COLUMNS, PAIR_GAP, LINE_HEIGHT = 4, 16, 16
BACKGROUND, INK, FAINT, ALARM = (250, 250, 250), (20, 20, 20), (95, 95, 95), (190, 30, 45)
DPI = 110
REAL_COLOUR, GENERATED_COLOUR = "#4c72b0", "#dd8452"


@dataclass(frozen=True)
class Pair:
    """A generated image and the training image nearest to it, as it was compared: mirrored or not."""

    generated_HW: NDArray[np.uint8]
    training_HW: NDArray[np.uint8]
    caption: str
    is_suspect: bool


def montage(images_NHW: NDArray[np.uint8], columns: int) -> Image.Image:
    """Return images row by row, as they are, or larger by a whole number where they are small."""
    scale = _scale(images_NHW.shape[1])
    height, width = (scale * side + GAP for side in images_NHW.shape[1:])
    rows = -(-len(images_NHW) // columns)
    sheet = Image.new("RGB", (min(columns, len(images_NHW)) * width - GAP, rows * height - GAP), BACKGROUND)
    for number, image in enumerate(images_NHW):
        sheet.paste(enlarged(image, scale), (number % columns * width, number // columns * height))
    return sheet


def pair_sheet(pairs: Sequence[Pair]) -> Image.Image:
    """Return pairs beside each other, a generated image on the left of each; suspects are framed."""
    scale = _scale(pairs[0].generated_HW.shape[0])
    height, width = (scale * side for side in pairs[0].generated_HW.shape)
    step_x, step_y = 2 * width + GAP + PAIR_GAP, height + LINE_HEIGHT + PAIR_GAP
    rows = -(-len(pairs) // PAIR_COLUMNS)
    size = (min(PAIR_COLUMNS, len(pairs)) * step_x + PAIR_GAP, rows * step_y + PAIR_GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, pair in enumerate(pairs):
        left, top = PAIR_GAP + number % PAIR_COLUMNS * step_x, PAIR_GAP + number // PAIR_COLUMNS * step_y
        if pair.is_suspect:
            draw.rectangle((left - 3, top - 3, left + 2 * width + GAP + 2, top + height + 2), fill=ALARM)
        sheet.paste(enlarged(pair.generated_HW, scale), (left, top))
        sheet.paste(enlarged(pair.training_HW, scale), (left + width + GAP, top))
        draw.text((left, top + height + 4), pair.caption, ALARM if pair.is_suspect else FAINT, font)
    return sheet


def distributions(generated_ND: NDArray[np.float64], real_ND: NDArray[np.float64], name: str) -> "Figure":
    """Return a figure of each statistic's distribution, generated beside real."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context("default", after_reset=True):  # whatever the user's own settings are
        figure = Figure(figsize=(11, 4.4), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        for column, statistic in enumerate(STATISTICS):
            axes = figure.add_subplot(2, 4, column + 1)
            both = np.concatenate([generated_ND[:, column], real_ND[:, column]])
            low, high = np.quantile(both, [0.005, 0.995])
            bins = np.linspace(low, high if high > low else low + 1, 21)
            for values, colour, label in (
                (real_ND[:, column], REAL_COLOUR, "real, held out"),
                (generated_ND[:, column], GENERATED_COLOUR, "generated"),
            ):
                weights = np.full(len(values), 1 / len(values))
                clipped = values.clip(bins[0], bins[-1])
                axes.hist(clipped, bins.tolist(), weights=weights, color=colour, alpha=0.55, label=label)
            axes.set_title(MEASURES[statistic].title, fontsize=9)
            axes.tick_params(labelsize=7)
            axes.set_yticks([])
            axes.spines[["top", "right", "left"]].set_visible(False)
        legend = figure.add_subplot(2, 4, len(STATISTICS) + 1)
        legend.set_axis_off()
        legend.legend(*figure.axes[0].get_legend_handles_labels(), loc="center left", fontsize=10, frameon=False)
        legend.set_title(name, fontsize=10, loc="left")
    return figure


def _scale(side: int) -> int:
    return max(1, -(-MIN_SIDE // side))


def enlarged(image_HW: NDArray[np.uint8], scale: int) -> Image.Image:
    """Return a grey image in RGB, larger by a whole number."""
    picture = Image.fromarray(image_HW)
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.BICUBIC).convert("RGB")
