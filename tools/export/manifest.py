"""manifest.json: all that a bundle says of itself, apart from the hashes of its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch.record import versions
from launch.training_data import Training
from models.base import noise_schedule, resolution_of, text_shape
from models.errors import ModelError
from models.sampling import SamplingConfig
from models.schedule import NoiseSchedule
from sampler.manifest import FORMAT, VERSION
from tools.export.masks import mask_palette
from tools.export.networks import Graph
from tools.export.source import Source

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "onnx", "onnxruntime")
DEFAULT_SAMPLING = SamplingConfig().model_dump()
DTYPES = {"torch.float32": "float32", "torch.int64": "int64"}


def bundle_schedule(source: Source) -> tuple[NoiseSchedule, dict[str, Any]]:
    """Return the noise schedule, and how the manifest says it.

    Raises: ModelError for one that the sampler cannot compute.
    """
    schedule = noise_schedule(source.config)
    config = schedule.scheduler_config
    kinds = ("linear", "scaled_linear")
    if config.get("trained_betas") is not None or config["beta_schedule"] not in kinds:
        raise ModelError(
            f"{source.name} has the noise schedule {config['beta_schedule']!r}; a bundle's sampler knows "
            f"{' and '.join(kinds)}: export another form"
        )
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
    return schedule, {key: config[key] for key in (*keys, "timestep_spacing")}


def manifest(
    source: Source,
    tokenizer: CLIPTokenizer,
    graphs: Mapping[str, Mapping[str, Any]],
    precision: str,
    limits: Mapping[str, float | None],
    training: Training,
) -> dict[str, Any]:
    """Return the manifest without "files" and parity's "errors".

    graphs: what it says of each. limits: the largest differences to torch that are let through.
    """
    schedule, schedule_said = bundle_schedule(source)
    versions_now = versions()
    palette = mask_palette(source, training)
    record = source.record or {}
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": source.name,
        "created_with": {name: library_version(name) for name in LIBRARIES} | {"commit": versions_now["commit"]},
        "files": {},
        "graphs": dict(sorted(graphs.items())),
        "precision": precision,
        "prediction_type": schedule.prediction_type,
        "schedule": schedule_said,
        "resolution": resolution_of(source.config),
        "latent": {
            "channels": source.base.part_config("vae")["latent_channels"],
            "pixels": source.base.latent_pixels,
            "scaling_factor": schedule.scaling_factor,
        },
        "tokenizer": {
            "file": "tokenizer.json",
            "length": text_shape(source.config)[0],
            "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id,
            "pad": tokenizer.pad_token_id,
            "vocabulary_size": len(tokenizer),
        },
        "sampling": sampling_defaults(record, schedule),
        "prompts": training.prompts,
        "mask_palette": palette,
        "training_data": training.databases,
        "parents": [dict(source.record)] if source.record else [],
        "parity": {"file": "parity.npz", "errors": {}, "limits": dict(limits)},
    }


def sampling_defaults(record: Mapping[str, Any], schedule: NoiseSchedule) -> dict[str, Any]:
    """Return how images are drawn where a user does not say: as in its own run."""
    known: Mapping[str, Any] = record.get("sampling") or {}
    rescale = {"guidance_rescale": 0.7} if schedule.has_zero_terminal_snr else {}
    return {key: (known or rescale).get(key, value) for key, value in DEFAULT_SAMPLING.items()}


def library_version(name: str) -> str:
    """Return the version of an installed library."""
    from importlib.metadata import version

    return version(name)


def described(graph: Graph) -> dict[str, Any]:
    """Return what the manifest says of a graph's inputs and outputs."""
    return {
        "inputs": {
            name: {"dtype": DTYPES[str(value.example.dtype)], "shape": list(value.shape)}
            for name, value in graph.inputs.items()
        },
        "outputs": {name: {"dtype": "float32", "shape": list(shape)} for name, shape in graph.outputs.items()},
    }
