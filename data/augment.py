"""What varies each time a sample is seen."""

from pydantic import BaseModel, ConfigDict, Field


class AugmentConfig(BaseModel):
    """What is drawn anew each time a sample is seen."""

    model_config = ConfigDict(extra="forbid")

    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of samples trained with the empty prompt, which guidance needs."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Share of samples seen as their left-right mirror image.")
    hint_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of samples that a ControlNet stage trains without their mask, so that it also draws without"
        " one. Images that have no mask are seen so in any case.",
    )
