"""The base model that is fine-tuned: how it is named, and where it lies on this machine."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.errors import ModelError
from models.schedule import NoiseSchedule, PredictionType
from models.single_file import told_prediction

BUILT_IN = Path(__file__).parent
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# What a hub model needs here: no pickles, no float16 twins, no single files, which often lie beside it.
HUB_FILES = ("*.json", "*.txt", "*/diffusion_pytorch_model*.safetensors", "text_encoder/model*.safetensors")
# Height and width in pixels of what one latent covers, in every Stable Diffusion 1 and 2; shards are made for it.
LATENT_PIXELS = 8

Attention = Literal["sdpa", "eager"]


class ModelConfig(BaseModel):
    """The base model that is fine-tuned."""

    model_config = ConfigDict(extra="forbid")

    base: str = Field(
        min_length=1,
        description="What to start from: the name of a folder in models/ (`tiny`), a diffusers folder, a single "
        ".safetensors file, or a hub id (ORG/NAME) that is already in the local cache; in this order.",
    )
    resolution: int | None = Field(
        None,
        gt=0,
        description="Height and width of the images, pixels, a multiple of what one latent covers (8). "
        "None: what the base was made for.",
    )
    prediction_type: PredictionType | None = Field(
        None,
        description="What the UNet learns to predict: the noise (epsilon) or the velocity (v_prediction); a base that "
        "predicts the other is converted by the training itself. None: as the base's scheduler says.",
    )
    zero_terminal_snr: bool | None = Field(
        None,
        description="Rescale the noise levels so that the last timestep is noise alone: only then do images become as "
        "dark as ultrasound's (arXiv:2305.08891). Needs v_prediction. None: as the base's scheduler says.",
    )
    single_file_config: str | None = Field(
        None,
        description="Diffusers folder or cached hub id that gives the architecture, tokenizer and schedule of a single "
        "file. None: only where base is not a single file.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute the UNet's activations again in the backward pass: less memory, a third more time.",
    )
    attention: Attention = Field(
        "sdpa",
        description="sdpa: torch's fused attention, which never holds the matrix of all pairs of positions; eager: "
        "plain products that hold it (Stable Diffusion 1.5 at 512 px: three times the memory), to compare with.",
    )
    channels_last: bool = Field(
        False,
        description="Hand the UNet's convolutions their input with the channels last in memory, which tensor cores "
        "prefer; slower on a CPU. The weights stay as they are: ZeRO keeps them as parts of flat vectors.",
    )
    compile: bool = Field(
        False,
        description="Compile the UNet with torch.compile: minutes at the start and at the first validation, for faster "
        "steps on a GPU; on a CPU it gains next to nothing. Needs a C++ compiler (on a GPU: a C compiler).",
    )


def locate(base: str) -> Path:
    """Return the folder or single file that `base` names, without any network.

    Raises: ModelError if it is not on this machine; for a hub id it names the command that fetches it.
    """
    built_in = BUILT_IN / base
    if re.fullmatch(r"[\w.-]+", base) and (built_in / "model_index.json").is_file():
        return built_in
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"base {base} is a {path.suffix or 'plain'} file, which is never opened; a .safetensors is needed"
            )
        return path
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", base):
        names = ", ".join(sorted(found.parent.name for found in BUILT_IN.glob("*/model_index.json"))) or "none"
        raise ModelError(
            f"base {base!r} was not found: it is no folder or file here, no hub id (ORG/NAME), and none of the models "
            f"that come with SonoShard ({names})"
        )
    return _cached(base)


def resolution_of(config: ModelConfig) -> int:
    """Return the height and width of the images in pixels: the setting, or what the base was made for.

    Raises: ModelError if the latents would not be whole.
    """
    base = open_base(config)
    factor = base.latent_pixels
    if config.resolution is None:
        sample_size = base.part_config("unet")["sample_size"]
        if not isinstance(sample_size, int):
            raise ModelError(f"{config.base} gives no one image size (sample_size={sample_size}); set model.resolution")
        return sample_size * factor
    if config.resolution % factor:
        below = config.resolution // factor * factor
        raise ModelError(
            f"model.resolution={config.resolution} is not a multiple of {factor}, the pixels that one latent covers; "
            f"nearest that work: {below or factor}, {below + factor}"
        )
    return config.resolution


def latent_shape(config: ModelConfig) -> tuple[int, int, int]:
    """Return channels, height and width of one image's latents."""
    base = open_base(config)
    side = resolution_of(config) // base.latent_pixels
    return base.part_config("unet")["in_channels"], side, side


def text_shape(config: ModelConfig) -> tuple[int, int]:
    """Return tokens and width of one prompt's embedding."""
    text_encoder = open_base(config).part_config("text_encoder")
    return text_encoder["max_position_embeddings"], text_encoder["hidden_size"]


def noise_schedule(config: ModelConfig) -> NoiseSchedule:
    """Return the schedule and prediction type that the base was trained with, or that the config sets.

    A single file that says what it predicts goes before the folder that its architecture is taken from.
    """
    base = open_base(config)
    said = told_prediction(base.single_file) if base.single_file is not None else None
    return NoiseSchedule.from_scheduler_config(
        base.part_config("scheduler"),
        scaling_factor=base.part_config("vae").get("scaling_factor", 0.18215),  # AutoencoderKL's default
        prediction_type=config.prediction_type or said,
        zero_terminal_snr=config.zero_terminal_snr,
    )


@dataclass(frozen=True)
class BaseFiles:
    """A located base: the diffusers folder with its configs (and weights), or the single file with its weights."""

    name: str
    folder: Path
    single_file: Path | None

    def part_config(self, part: str) -> dict[str, Any]:
        """Return the config of one part as its JSON file has it."""
        file = self.folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if not file.is_file():
            raise ModelError(f"{self.name}: {file} is missing; {how_to_mend(self.name)}")
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config

    @property
    def latent_pixels(self) -> int:
        """Height and width in pixels of what one latent covers."""
        return 2 ** (len(self.part_config("vae")["block_out_channels"]) - 1)


def open_base(config: ModelConfig) -> BaseFiles:
    """Return where the base's files lie. Raises: ModelError if it is not whole, or no Stable Diffusion 1 or 2."""
    path = locate(config.base)
    if path.is_dir():
        if config.single_file_config is not None:
            warnings.warn(f"model.single_file_config is ignored: base {config.base} is no single file", stacklevel=3)
        base = BaseFiles(config.base, path, None)
    else:
        if config.single_file_config is None:
            raise ModelError(
                f"{path} is a single file, which does not hold its architecture; set model.single_file_config to the "
                "diffusers folder or cached hub id of the model that it was made from"
            )
        folder = locate(config.single_file_config)
        if not folder.is_dir():
            raise ModelError(
                f"model.single_file_config={config.single_file_config} is a file; a diffusers folder is needed"
            )
        base = BaseFiles(config.single_file_config, folder, path)
    _check_kind(base)
    return base


def _check_kind(base: BaseFiles) -> None:
    index_file = base.folder / "model_index.json"
    if not index_file.is_file():
        inner = base.folder / "model"  # of a stage's folder
        mend = f"give {inner}" if (inner / "model_index.json").is_file() else how_to_mend(base.name)
        raise ModelError(f"{base.folder} has no model_index.json, so it is no diffusers folder; {mend}")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    kind = index.get("_class_name")
    if absent := [part for part in PARTS if index.get(part) is None]:
        raise ModelError(f"{base.name} is a {kind} without {absent[0]}; a Stable Diffusion 1 or 2 model is needed")
    channels, latents = base.part_config("unet")["in_channels"], base.part_config("vae")["latent_channels"]
    if index.get("text_encoder_2") is not None or channels != latents:
        raise ModelError(
            f"{base.name} is a {kind} (a UNet of {channels} channels for {latents} latent channels); "
            "a text-to-image model of Stable Diffusion 1 or 2 is needed"
        )
    if (pixels := base.latent_pixels) != LATENT_PIXELS:
        raise ModelError(
            f"{base.name} has a VAE of which one latent covers {pixels} x {pixels} pixels, needed {LATENT_PIXELS} x"
            f" {LATENT_PIXELS}: give a model with a VAE of Stable Diffusion 1 or 2"
        )


def _cached(hub_id: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"base {hub_id} is no folder or file here, and is not in the cache {constants.HF_HUB_CACHE}; on a machine "
            f"with internet and the same cache (HF_HOME) run: {_download_command(hub_id)}"
        ) from None


def _download_command(hub_id: str) -> str:
    return " ".join([f"hf download {hub_id}", *(f"--include '{pattern}'" for pattern in HUB_FILES)])


def how_to_mend(name: str) -> str:
    """Return the clause that says how a base with missing or wrong files becomes whole."""
    if Path(name).expanduser().exists() or "/" not in name:
        return "copy the model again"
    return f"on a machine with internet run: {_download_command(name)}"
