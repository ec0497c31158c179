"""Load Stable Diffusion part by part, from this machine alone: a cached hub id, a diffusers folder, a single file."""

# B batch, C latent channels, H W image height and width, P prompts, L prompt tokens, D text width

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from models.errors import ModelError
from models.schedule import NoiseSchedule, PredictionType
from models.single_file import NAMES, PREFIXES, check_fits, read_part
from models.weights import hash_weights, weight_files

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer

BUILT_IN = Path(__file__).parent
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# What a hub model needs here: no pickles, no float16 twins, no single files, which often lie beside it.
HUB_FILES = ("*.json", "*.txt", "*/diffusion_pytorch_model*.safetensors", "text_encoder/model*.safetensors")


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
        None, description="What the UNet predicts: the noise or the velocity. None: as the base's scheduler says."
    )
    single_file_config: str | None = Field(
        None,
        description="Diffusers folder or cached hub id that gives the architecture, tokenizer and schedule of a single "
        "file. None: only where base is not a single file.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute the UNet's activations again in the backward pass: less memory, a third more time."
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
    base = _open(config)
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


def latent_shape_of(config: ModelConfig) -> tuple[int, int, int]:
    """Return (channels, height, width) of one sample's latents."""
    base = _open(config)
    side = resolution_of(config) // base.latent_pixels
    return int(base.part_config("unet")["in_channels"]), side, side


def noise_schedule(config: ModelConfig) -> NoiseSchedule:
    """Return the schedule and prediction type that the base was trained with, or that the config sets."""
    base = _open(config)
    return NoiseSchedule.from_scheduler_config(
        base.part_config("scheduler"),
        scaling_factor=base.part_config("vae").get("scaling_factor", 0.18215),  # AutoencoderKL's default
        prediction_type=config.prediction_type,
    )


def load_unet(config: ModelConfig, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the UNet in `dtype` on the CPU, in training mode, checkpointing gradients if the config says so."""
    from diffusers import UNet2DConditionModel

    unet = _load_part(_open(config), "unet", UNet2DConditionModel, dtype)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


def empty_unet(config: ModelConfig) -> UNet2DConditionModel:
    """Return the UNet's architecture without any weights (on the meta device), to be filled with others."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(_open(config).part_config("unet"))
    return unet


def load_vae(config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """Return the VAE, frozen, in evaluation mode."""
    from diffusers import AutoencoderKL

    return _load_part(_open(config), "vae", AutoencoderKL, dtype).requires_grad_(False).eval().to(device)


def load_text_encoder(
    config: ModelConfig, device: torch.device | str, dtype: torch.dtype
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Return the tokenizer and the text encoder, frozen, in evaluation mode.

    Raises: ModelError if they do not belong together.
    """
    from transformers import CLIPTextModel

    base = _open(config)
    tokenizer = _load_tokenizer(base)
    text_encoder = _load_part(base, "text_encoder", CLIPTextModel, dtype)
    return tokenizer, text_encoder.requires_grad_(False).eval().to(device)


def load_encoder(config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> LatentEncoder:
    """Return what turns images and prompts into latents' moments and embeddings; nothing else is loaded."""
    vae = load_vae(config, device, dtype)
    tokenizer, text_encoder = load_text_encoder(config, device, dtype)
    return LatentEncoder(vae, tokenizer, text_encoder, encoder_fingerprint(config))


def load_pipeline(
    config: ModelConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    unet: UNet2DConditionModel | None = None,
) -> StableDiffusionPipeline:
    """Return the whole pipeline, with `unet` (as it is) in place of the base's where one is given.

    It has no safety checker: that one judges photographs.
    """
    import diffusers

    base = _open(config)
    schedule = noise_schedule(config)
    scheduler_config = base.part_config("scheduler")
    scheduler_class = getattr(diffusers, str(scheduler_config.get("_class_name")), diffusers.DDPMScheduler)
    tokenizer, text_encoder = load_text_encoder(config, device, dtype)
    return diffusers.StableDiffusionPipeline(
        vae=load_vae(config, device, dtype),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=load_unet(config, dtype).eval().to(device) if unet is None else unet,
        scheduler=scheduler_class.from_config(scheduler_config, prediction_type=schedule.prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def encoder_fingerprint(config: ModelConfig) -> dict[str, str]:
    """Return what shards encoded by this base are known by; reads the files, loads no network.

    The hashes are of values, not of files: a copy of the base in another dtype or layout has the same ones.
    """
    import diffusers
    import transformers

    base = _open(config)
    tokenizer = _load_tokenizer(base)
    return {
        "vae": _hash_part(base, "vae"),
        "text_encoder": _hash_part(base, "text_encoder"),
        "tokenizer": _hash_tokenizer(tokenizer),
        "scaling_factor": repr(noise_schedule(config).scaling_factor),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


class LatentEncoder:
    """VAE and text encoder, frozen: images to the moments of their latents, prompts to embeddings."""

    def __init__(
        self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, fingerprint: dict[str, str]
    ) -> None:
        self.fingerprint = fingerprint
        self._vae = vae
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        del vae.decoder, vae.post_quant_conv  # half of its memory, and never used here

    def moments(self, images_BCHW: Tensor) -> Tensor:
        """Return mean and log-variance of the latents, [B, 2C, H/8, W/8] float32 on the CPU, not scaled.

        `images_BCHW`: [B, 3, H, W] float32 in [-1, 1]. The log-variance is clamped to [-30, 20], as diffusers does
        before it draws.
        """
        import torch

        with torch.no_grad():
            latents = self._vae.encode(images_BCHW.to(self._vae.device, self._vae.dtype)).latent_dist
            return torch.cat([latents.mean, latents.logvar], dim=1).float().cpu()

    def embed(self, prompts: list[str]) -> Tensor:
        """Return what `text_embeddings` gives, [P, L, D] float32 on the CPU."""
        return text_embeddings(self._tokenizer, self._text_encoder, prompts)


def text_embeddings(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
    """Return the last hidden states of the prompts, [P, L, D] float32 on the CPU, as StableDiffusionPipeline's.

    A prompt is padded or cut to L tokens.
    """
    import torch

    tokens = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    uses_mask = getattr(text_encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(text_encoder.device) if uses_mask else None
    with torch.no_grad():
        return text_encoder(tokens.input_ids.to(text_encoder.device), attention_mask=mask)[0].float().cpu()


@dataclass(frozen=True)
class _Base:
    """A located base: the diffusers folder with its configs (and weights), or the single file with its weights."""

    name: str
    folder: Path
    single_file: Path | None

    def part_config(self, part: str) -> dict[str, Any]:
        """Return the config of one part as its JSON file has it."""
        file = self.folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if not file.is_file():
            raise ModelError(f"{self.name}: {file} is missing; {_mend(self.name)}")
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config

    @property
    def latent_pixels(self) -> int:
        """Height and width in pixels of what one latent covers."""
        return 2 ** (len(self.part_config("vae")["block_out_channels"]) - 1)


def _open(config: ModelConfig) -> _Base:
    path = locate(config.base)
    if path.is_dir():
        if config.single_file_config is not None:
            warnings.warn(f"model.single_file_config is ignored: base {config.base} is no single file", stacklevel=3)
        base = _Base(config.base, path, None)
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
        base = _Base(config.single_file_config, folder, path)
    _check_kind(base)
    return base


def _check_kind(base: _Base) -> None:
    index_file = base.folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(f"{base.folder} has no model_index.json, so it is no diffusers folder; {_mend(base.name)}")
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


def _mend(name: str) -> str:
    if Path(name).expanduser().exists() or "/" not in name:
        return "copy the model again"
    return f"on a machine with internet run: {_download_command(name)}"


def _load_part(base: _Base, part: str, model_class: Any, dtype: torch.dtype) -> Any:
    if base.single_file is not None:
        return _load_single_file_part(base.single_file, base.folder, part, model_class, dtype)
    with _no_progress_bar():
        model, report = model_class.from_pretrained(
            base.folder / part,
            dtype=dtype,
            variant=weight_files(base.folder, part).variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    if absent := sorted(report["missing_keys"]):
        raise ModelError(
            f"{base.folder / part} lacks {len(absent)} of its tensors (the first: {absent[0]}), so config and weights "
            f"do not belong together; {_mend(base.name)}"
        )
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    # transformers draws one per model, which every rank of a job would write to its log
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _load_single_file_part(file: Path, folder: Path, part: str, model_class: Any, dtype: torch.dtype) -> Any:
    import torch

    stored = read_part(file, part)
    if part == "text_encoder":
        from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

        return create_diffusers_clip_model_from_ldm(
            model_class, stored, config=str(folder), subfolder=part, torch_dtype=dtype, local_files_only=True
        )
    with torch.device("meta"):
        wanted = model_class.from_config(model_class.load_config(folder, subfolder=part)).state_dict()
    check_fits(file, part, stored, wanted, folder)
    # Cast here: given a dtype, diffusers casts too, and warns of modules that it keeps in float32 although it has none.
    cast = {key: tensor.to(dtype) for key, tensor in stored.items()}
    return model_class.from_single_file(cast, config=str(folder), subfolder=part, local_files_only=True)


def _load_tokenizer(base: _Base) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
    vocab_size = base.part_config("text_encoder")["vocab_size"]
    if len(tokenizer) != vocab_size:
        raise ModelError(
            f"{base.folder}/tokenizer has {len(tokenizer)} tokens and the text encoder {vocab_size}; vocab.json and "
            f"merges.txt, or tokenizer.json, must be whole and of this model: {_mend(base.name)}"
        )
    return tokenizer


def _hash_part(base: _Base, part: str) -> str:
    prefix, part_config = PREFIXES[part], base.part_config(part)

    def original_name(key: str) -> str | None:
        if base.single_file is not None:
            name = key.removeprefix(prefix) if key.startswith(prefix) else None
        else:
            name = NAMES[part](key, part_config)
        return None if name is None or name.endswith("position_ids") else name  # they are a count, and often left out

    paths = (base.single_file,) if base.single_file is not None else weight_files(base.folder, part).paths
    return hash_weights(paths, original_name)


def _hash_tokenizer(tokenizer: CLIPTokenizer) -> str:
    import hashlib

    # Not the files: saving changes them (padding state of earlier calls), and the same tokenizer has two layouts.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = [sorted(tokenizer.get_vocab().items()), model["merges"], tokenizer.model_max_length]
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
