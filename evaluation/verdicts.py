"""What a figure means, in a few words: is it what real images have, is it worse, or can it not be told."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from evaluation.feature_distance import Compared
from evaluation.intervals import Interval
from evaluation.label_agreement import LabelAgreement
from evaluation.mask_agreement import ClassAgreement
from evaluation.memorisation import Memorisation

# Fewer held-out patients say too little of what real images reach: of 6, a shift of 0.6 deviations in every statistic
# was farther in 4 of 10 trials, of 20 always.
MIN_PATIENTS = 10
# Fewer generated images say too little of what is drawn: of 2, half of all shifts of 0.5 deviations went unnoticed.
MIN_GENERATED = 10
# Of halvings, those in which generated images must be farther than real ones to be called so: those of a perfect
# generator were in at most 2 of 40 trials, with 6 to 80 patients.
FARTHER_SHARE = 0.8
# As many suspects or more are to be looked at where chance makes them in fewer than so many sets.
UNLIKELY = 0.1
# What a set needs to be called far: nearly every halving beyond so many times what real images reach.
FAR_TIMES = 2


class Verdict(BaseModel):
    """level: good: as real images are; fair: not quite; bad: it failed; unknown: the judge cannot tell real ones."""

    model_config = ConfigDict(frozen=True)

    level: Literal["good", "fair", "bad", "unknown"]
    text: str


def of_distance(compared: Compared) -> Verdict:
    """Return how near a set is. Near: not farther from a half of the held-out patients than the other half, mostly."""
    if compared.num_patients < MIN_PATIENTS:
        return Verdict(
            level="unknown",
            text=f"{compared.num_patients} held-out patients are too few to tell, needed {MIN_PATIENTS}",
        )
    if compared.num_generated is not None and compared.num_generated < MIN_GENERATED:
        return Verdict(
            level="unknown",
            text=f"{compared.num_generated} generated images are too few to tell, needed {MIN_GENERATED}",
        )
    if compared.share_above < FARTHER_SHARE:
        return Verdict(level="good", text="as near as real images")
    if compared.generated.low > FAR_TIMES * max(compared.real.high, 0):
        return Verdict(level="bad", text="far from real images")
    return Verdict(level="fair", text="farther than real images")


def is_less(generated: Interval, real: Interval) -> bool:
    """Return whether a figure is below that of other images, and the interval of their difference is without 0.

    That interval from those of both: Zou & Donner 2008 (doi:10.1002/sim.3095).
    """
    margin = math.hypot(real.value - real.low, generated.high - generated.value)
    return real.value - generated.value > margin


def of_labels(labels: LabelAgreement) -> Verdict:
    """Return whether images show what was asked for. Failed: as little as by chance, and less than in real images."""
    generated, real = labels.generated.balanced_accuracy, labels.real.balanced_accuracy
    if real.low <= labels.chance:
        return Verdict(level="unknown", text="the classifier cannot tell real images' labels either")
    if generated.low <= labels.chance:
        if not is_less(generated, real):
            return Verdict(level="unknown", text="generated images are too few to tell")
        return Verdict(level="bad", text="not the labels that were asked for")
    if is_less(generated, real):
        return Verdict(level="fair", text="labels are harder to see than in real images")
    return Verdict(level="good", text="labels are seen as in real images")


def of_mask(found: ClassAgreement) -> Verdict:
    """Return whether images follow their masks.

    Failed: those of other images would do as well, within the interval, and real images follow theirs better.
    """
    best = found.reconstructed or found.real
    unrelated = found.unrelated_dice
    if not found.generated.num_images or math.isnan(unrelated.value):
        return Verdict(level="unknown", text="fewer than two masks have it")
    if not best.num_images or best.dice.low <= unrelated.high:
        return Verdict(level="unknown", text="the segmenter does not find it in real images either")
    if found.gain.low <= 0:
        if not is_less(found.generated.dice, best.dice):
            return Verdict(level="unknown", text="generated images are too few to tell")
        return Verdict(level="bad", text="the mask is not followed: another's would do as well")
    if is_less(found.generated.dice, best.dice):
        return Verdict(level="fair", text="the mask is followed, less closely than in real images")
    return Verdict(level="good", text="the mask is followed as in real images")


def of_unseen_mask() -> Verdict:
    """Return what is said of a class that masks have and no training image."""
    return Verdict(level="unknown", text="no training image has it, so that the segmenter cannot look for it")


def of_copies(copies: Memorisation) -> Verdict:
    """Return whether training images were copied: a few images by themselves, or more suspects than chance explains.

    Fair: more suspects than new patients mostly have, though chance may explain them: a person must look.
    """
    if copies.is_flagged:
        return Verdict(level="bad", text="training images were copied")
    if num := copies.num_copies:
        return Verdict(level="bad", text=f"{_counted(num, 'image')} copied from training images: look at the pairs")
    # Two spaces are two chances of a false alarm.
    if any(len(copies.suspects) * found.by_chance < UNLIKELY for found in copies.suspects.values()):
        return Verdict(level="fair", text=f"{_counted(copies.num_suspects, 'suspect')}: look at the pairs")
    if copies.num_suspects:
        return Verdict(level="good", text=f"{_counted(copies.num_suspects, 'suspect')}, as new patients have")
    return Verdict(level="good", text="no image is suspiciously near a training image")


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
