"""Load Stable Diffusion part by part, each only when it is needed; nothing is fetched and nothing unpickled."""

# B batch, C latent channels, H W image height and width, P prompts, L prompt tokens, D text width

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.base import BaseFiles, ModelConfig, how_to_mend, noise_schedule, open_base
from models.errors import ModelError
from models.original_names import NAMES, PREFIXES
from models.single_file import check_fits, read_part
from models.weights import hash_weights, weight_files

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTokenizer


# By their original names: the first convolution, the keys of the prompt in the middle, the last convolution.
KNOWN_BY = ("input_blocks.0.0.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight", "out.2.weight")


def import_libraries() -> None:
    """Import now what is imported where networks are first loaded and drawn from: seconds that ranks take side by side.

    Not what a whole pipeline takes besides, which is saved when a stage ends.
    """
    from diffusers import (  # noqa: F401 - a name loads its module
        AutoencoderKL,
        ControlNetModel,
        DPMSolverMultistepScheduler,
        UNet2DConditionModel,
    )


def load_unet(config: ModelConfig, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the UNet in `dtype` on the CPU, in training mode, with the config's settings for training."""
    from diffusers import UNet2DConditionModel

    unet = load_part(open_base(config), "unet", UNet2DConditionModel, dtype)
    apply_settings(unet, config)
    return unet.train()


def apply_settings(unet: UNet2DConditionModel | ControlNetModel, config: ModelConfig) -> None:
    """Set how a UNet or ControlNet computes, as the config says; parameters and their names stay as they are."""
    from diffusers.models.attention_processor import AttnProcessor
    from torch import nn

    if config.attention == "eager":  # diffusers' own choice is sdpa
        unet.set_attn_processor(AttnProcessor())
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.channels_last:
        for convolution in (module for module in unet.modules() if isinstance(module, nn.Conv2d)):
            convolution.register_forward_pre_hook(_to_channels_last)
    if config.compile:
        _refuse_without_compiler()
        # In place: torch.compile(unet) would rename the parameters. Without the layout pass: with it, torch 2.13 on a
        # CPU gave the loss of the built-in UNet and no gradient at all to 84 parameters of its deepest level.
        unet.compile(options={"layout_optimization": False})


def _to_channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    import torch

    return (inputs[0].to(memory_format=torch.channels_last), *inputs[1:])


def _refuse_without_compiler() -> None:
    import torch

    # What Inductor calls on a CPU, and Triton on a GPU; an environment variable goes before.
    variable, names = ("CC", ("gcc", "clang")) if torch.cuda.is_available() else ("CXX", ("g++",))
    names = (os.environ[variable],) if os.environ.get(variable) else names
    if not any(shutil.which(name) for name in names):
        raise ModelError(
            f"model.compile needs a compiler, and {' or '.join(names)} is not in PATH: install it, name another in "
            f"{variable}, or set model.compile=false"
        )


def empty_unet(config: ModelConfig) -> UNet2DConditionModel:
    """Return the UNet's architecture without any weights (on the meta device), to be filled with others."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(open_base(config).part_config("unet"))
    return unet


def load_vae(config: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """Return the VAE, frozen, in evaluation mode."""
    from diffusers import AutoencoderKL

    return load_part(open_base(config), "vae", AutoencoderKL, dtype).requires_grad_(False).eval().to(device)


def load_text_encoder(
    config: ModelConfig, device: torch.device | str, dtype: torch.dtype
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Return the tokenizer and the text encoder, frozen, in evaluation mode.

    Raises: ModelError if they do not belong together.
    """
    from transformers import CLIPTextModel

    base = open_base(config)
    tokenizer = _load_tokenizer(base)
    text_encoder = load_part(base, "text_encoder", CLIPTextModel, dtype)
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

    It has no safety checker: that one judges photographs. The settings for training are not applied.
    """
    import diffusers

    base = open_base(config)
    schedule = noise_schedule(config)
    scheduler_config = base.part_config("scheduler")
    changes: dict[str, Any] = {"prediction_type": schedule.prediction_type}
    scheduler_class = getattr(diffusers, str(scheduler_config.get("_class_name")), diffusers.DDPMScheduler)
    if schedule.has_zero_terminal_snr:  # which PNDM, of Stable Diffusion 1.5, knows nothing of
        scheduler_class, scheduler_config = diffusers.DDIMScheduler, dict(schedule.scheduler_config)
        changes["clip_sample"] = False  # latents are not within [-1, 1]
    tokenizer, text_encoder = load_text_encoder(config, device, dtype)
    return diffusers.StableDiffusionPipeline(
        vae=load_vae(config, device, dtype),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=load_part(base, "unet", diffusers.UNet2DConditionModel, dtype).eval().to(device) if unet is None else unet,
        scheduler=scheduler_class.from_config(scheduler_config, **changes),
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

    base = open_base(config)
    tokenizer = _load_tokenizer(base)
    return {
        "vae": _hash_part(base, "vae"),
        "text_encoder": _hash_part(base, "text_encoder"),
        "tokenizer": _hash_tokenizer(tokenizer),
        "scaling_factor": repr(noise_schedule(config).scaling_factor),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def unet_sha256(config: ModelConfig) -> str:
    """Return a hash by which the base's UNet is known, of the same values in another dtype or layout too.

    It is of three matrices, of which any training changes one; reading all would take as long as loading them.
    """
    return _hash_part(open_base(config), "unet", KNOWN_BY)


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


def load_part(base: BaseFiles, part: str, model_class: Any, dtype: torch.dtype) -> Any:
    """Return one part of a base as an object of `model_class`, in `dtype` on the CPU. Raises: ModelError."""
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
            f"do not belong together; {how_to_mend(base.name)}"
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
    # Not given one, it makes float32 of everything.
    return model_class.from_single_file(cast, config=str(folder), subfolder=part, local_files_only=True).to(dtype)


def _load_tokenizer(base: BaseFiles) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)
    vocab_size = base.part_config("text_encoder")["vocab_size"]
    if len(tokenizer) != vocab_size:
        raise ModelError(
            f"{base.folder}/tokenizer has {len(tokenizer)} tokens and the text encoder {vocab_size}; vocab.json and "
            f"merges.txt, or tokenizer.json, must be whole and of this model: {how_to_mend(base.name)}"
        )
    return tokenizer


def _hash_part(base: BaseFiles, part: str, only: Collection[str] = ()) -> str:
    """Return the hash of a part's weights; only: those of these original names, if there are any."""
    prefix, part_config = PREFIXES[part], base.part_config(part)

    def original_name(key: str) -> str | None:
        if base.single_file is not None:
            name = key.removeprefix(prefix) if key.startswith(prefix) else None
        else:
            name = NAMES[part](key, part_config)
        if name is None or name.endswith("position_ids"):  # they are a count, and often left out
            return None
        return name if not only or name in only else None

    paths = (base.single_file,) if base.single_file is not None else weight_files(base.folder, part).paths
    return hash_weights(paths, original_name)


def _hash_tokenizer(tokenizer: CLIPTokenizer) -> str:
    import hashlib

    # Not the files: saving changes them (padding state of earlier calls), and the same tokenizer has two layouts.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = [sorted(tokenizer.get_vocab().items()), model["merges"], tokenizer.model_max_length]
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
