"""The recipe of the built-in model: every number that decides how it comes out."""

import ast
import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any


class RecipeError(ValueError):
    """An override that names no number of the recipe, or gives one of another type."""


@dataclass(frozen=True)
class ImageRecipe:
    """Which simulated images are drawn.

    The seeds belong to this program alone: demo, tests and benchmarks simulate with seeds below 20,000, so nothing
    that is fine-tuned or evaluated on simulated data was seen here. Breast images come from the linear scanner only;
    the trapezoid one is left for the demo to learn.
    """

    size: int = 128
    num_train: int = 28_000
    num_held_out: int = 512
    # Image i is drawn with preset i modulo 4: half of them are breast.
    cycle: tuple[str, ...] = ("breast", "cardiac", "breast", "fetal")
    scanner: str = "linear"
    train_seed: int = 20_000
    held_out_seed: int = 20_001


@dataclass(frozen=True)
class TokenizerRecipe:
    """Byte-level BPE as CLIP's, learnt from the captions."""

    vocab_size: int = 896  # at most; 514 of them are bytes, bytes that end a word, and the two specials
    context_tokens: int = 24


@dataclass(frozen=True)
class VaeRecipe:
    """The autoencoder, its losses and its training."""

    # 8x down with 1.76 M parameters: 3.5 MB as float16.
    block_out_channels: tuple[int, ...] = (32, 64, 80, 80)
    norm_num_groups: int = 8
    critic_channels: int = 48

    steps: int = 4_600
    batch_size: int = 64
    learning_rate: float = 1e-3
    critic_learning_rate: float = 4e-4
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    shift_pixels: int = 8

    # What must be right is where things lie and how bright they are; of speckle only the look must be right.
    coarse_weight: float = 2.0  # L1 of averages over 4x4 pixels
    pixel_weight: float = 0.3  # L1 of pixels
    spectrum_weight: float = 0.3  # L1 of log spectra of windows
    spectrum_windows: tuple[int, ...] = (16, 32)
    kl_weight: float = 5e-3  # per latent element
    critic_weight: float = 0.5  # the critic's gradient, as a share of the gradient of all the above
    feature_weight: float = 1.0  # distance in the critic's features, relative to its verdict
    critic_learns_from: float = 0.08  # fraction of the training
    critic_counts_from: float = 0.12


@dataclass(frozen=True)
class DenoiserRecipe:
    """UNet and text encoder, trained together from nothing."""

    block_out_channels: tuple[int, ...] = (64, 80, 96)
    layers_per_block: int = 1
    norm_num_groups: int = 16
    num_heads: int = 4
    text_width: int = 128
    text_layers: int = 2

    steps: int = 4_100
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.9995
    clip_norm: float = 1.0
    min_snr_gamma: float = 5.0
    caption_dropout: float = 0.1


@dataclass(frozen=True)
class ProofRecipe:
    """The pictures and figures that show what came out."""

    num_columns: int = 8
    sampling_steps: int = 30
    guidance_scale: float = 3.0


@dataclass(frozen=True)
class Recipe:
    """Everything; `Recipe()` is how models/tiny was made, unless its README says otherwise."""

    seed: int = 0
    images: ImageRecipe = field(default_factory=ImageRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    proof: ProofRecipe = field(default_factory=ProofRecipe)

    def with_overrides(self, overrides: list[str]) -> "Recipe":
        """Return a recipe with `KEY=VALUE` overrides such as `vae.steps=500`.

        Raises: RecipeError if a key is unknown or a value is of another type than the one that it replaces.
        """
        recipe = self
        for override in overrides:
            key, _, text = override.partition("=")
            recipe = _replaced(recipe, key.split("."), _value(text), whole_key=key)
        return recipe


def _value(text: str) -> Any:
    """Return the Python literal that `text` spells, or else `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _replaced(section: Any, path: list[str], value: Any, *, whole_key: str) -> Any:
    """Return the dataclass `section` with the field at `path` replaced."""
    known = [f.name for f in dataclasses.fields(section)]
    if path[0] not in known:
        nearest = difflib.get_close_matches(path[0], known, n=1, cutoff=0.0)[0]
        raise RecipeError(f"the recipe has no {whole_key!r}; the nearest to {path[0]!r} is {nearest!r}")
    current = getattr(section, path[0])
    if dataclasses.is_dataclass(current) and len(path) > 1:
        return dataclasses.replace(section, **{path[0]: _replaced(current, path[1:], value, whole_key=whole_key)})
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if len(path) > 1 or type(value) is not type(current):
        raise RecipeError(f"{whole_key}={value!r} cannot replace {current!r}: give a {type(current).__name__}")
    return dataclasses.replace(section, **{path[0]: value})
