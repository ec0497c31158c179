"""What may be wrong with an image, and what is done about it."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["drop", "flag", "keep"]
Fault = Literal[
    "duplicate",
    "near_duplicate",
    "two_labels",
    "overlay",
    "colour_doppler",
    "combined",
    "empty_mask",
    "whole_mask",
    "mask_outside",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# What databases say of an image themselves, and the fault that it is.
FLAGS_OF_DATABASES: dict[str, Fault] = {
    "doppler": "colour_doppler",
    "marks": "overlay",
    "combined": "combined",
    "contradictory": "two_labels",
}


class Rules(BaseModel):
    """For each fault: leave the image out (drop), keep and note it in the manifest (flag), or ignore the fault (keep).

    Whatever is chosen, duplicates and near-duplicates share a split.
    """

    model_config = ConfigDict(extra="forbid")

    duplicate: Action = Field("flag", description="The same file again; drop leaves the best of them.")
    near_duplicate: Action = Field(
        "flag",
        description="Alike but for size, compression, brightness, marks or a mirror, and not known to be of the same "
        "patient; drop leaves the best of them: without overlays, then the largest.",
    )
    two_labels: Action = Field(
        "flag",
        description="Copies with different labels (drop: all of them), or a mask that contradicts its image's label.",
    )
    overlay: Action = Field("flag", description="Letters, callipers or other marks drawn over the image or beside it.")
    colour_doppler: Action = Field("flag", description="Colours over a part of the image.")
    combined: Action = Field("flag", description="Several views in one picture, where the database says so.")
    empty_mask: Action = Field("flag", description="A mask without a pixel, though the label is not `normal`.")
    whole_mask: Action = Field(
        "flag", description="A mask over nearly all of the picture: turned inside out, or of another kind."
    )
    mask_outside: Action = Field("flag", description="A mask of which a part lies beside the scanner's image.")

    def action(self, fault: Fault) -> Action:
        """Return what is done about a fault."""
        action: Action = getattr(self, fault)
        return action


class QualityConfig(BaseModel):
    """What counts as a fault, and what is done about it."""

    model_config = ConfigDict(extra="forbid")

    rules: Rules = Rules()
    near_duplicate_bits: int = Field(
        24,
        ge=0,
        le=64,
        description="Two images are near-duplicates if at most so many of the 256 bits of their perceptual hashes "
        "differ. Resized, compressed and marked copies differ by up to 20; unlike simulated images by 28 or more.",
    )
    outside_share: float = Field(
        0.05, ge=0, le=1, description="A mask may lie beside the scanner's image with at most this share of it."
    )
    whole_share: float = Field(
        0.9, gt=0, le=1, description="A mask that covers more than this share of the picture counts as whole."
    )
    crop: Literal["none", "area"] = Field(
        "none",
        description="What of each image is trained on: all of it (none), or the box of the scanner's image (area), "
        "without the black and the text around it. Masks are cut likewise.",
    )
