"""What a bundle says of itself: manifest.json, read and checked before anything else of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sampler.errors import SamplerError

FORMAT, VERSION = "sonoshard-bundle", 2
NAME = "manifest.json"
# More than any manifest needs; a file that is not one is not read to its end.
MAX_BYTES = 64 * 2**20
NEEDED_GRAPHS = ("text_encoder", "unet", "vae_decoder")
CONTROL_GRAPHS = ("unet_with_control", "controlnet", "hint_embedding")
KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "files": dict,
    "graphs": dict,
    "precision": str,
    "prediction_type": str,
    "schedule": dict,
    "resolution": int,
    "latent": dict,
    "tokenizer": dict,
    "sampling": dict,
    "prompts": list,
    "mask_palette": list,
    "training_data": list,
    "parity": dict,
}
KEYS_WITHIN = {
    "schedule": ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr"),
    "latent": ("channels", "pixels", "scaling_factor"),
    "tokenizer": ("file", "length", "pad"),
    "sampling": ("sampler", "steps", "guidance", "guidance_rescale"),
    "parity": ("file", "limits"),
}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class PaletteClass:
    """A class that a mask can hold: its number, its name, and its colour as red, green and blue, 0 to 255.

    trained: whether a mask that the model learnt from had it, as far as that is known. Others may not be followed.
    """

    number: int
    name: str
    colour: tuple[int, int, int]
    trained: bool = True


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. values: all of it. sha256: of the file, which stands for the whole bundle."""

    values: Mapping[str, Any]
    sha256: str

    @classmethod
    def parse(cls, content: bytes, where: str) -> Manifest:
        """Return the manifest in a file's bytes. where: how errors name it. Raises: SamplerError."""
        try:
            values = json.loads(content)
        except ValueError as error:
            raise SamplerError(f"{where} is no JSON ({error}): copy the bundle again") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise SamplerError(f"{where} is not of a bundle (format is not {FORMAT!r}); export the model again")
        if values.get("version") != VERSION:
            raise SamplerError(
                f"{where} has version {values.get('version')!r}, this sampler reads {VERSION}: use the sampler that "
                "is in the bundle, or export the model again"
            )
        for key, kind in KEYS.items():
            if not isinstance(values.get(key), kind):
                raise SamplerError(f"{where} lacks {key!r}, or it is of another kind; export the model again")
        for key, needed in KEYS_WITHIN.items():
            if missing := [name for name in needed if name not in values[key]]:
                raise SamplerError(f"{where} lacks {key}.{missing[0]}; export the model again")
        if values["precision"] not in PRECISIONS:
            raise SamplerError(f"{where} has precision {values['precision']!r}; known are {', '.join(PRECISIONS)}")
        graphs = values["graphs"]
        if missing := [name for name in NEEDED_GRAPHS if name not in graphs]:
            raise SamplerError(f"{where} lacks the graph {missing[0]!r}; export the model again")
        named = [values["tokenizer"]["file"], values["parity"]["file"]]
        named += [graph[part] for graph in graphs.values() for part in ("file", "weights")]
        if missing := [name for name in named if name not in values["files"]]:
            raise SamplerError(f"{where} uses {missing[0]} without its hash in 'files'; export the model again")
        for name in values["files"]:
            _refuse_outside(name, where)
        return cls(values, hashlib.sha256(content).hexdigest())

    @property
    def name(self) -> str:
        """The bundle's name."""
        return str(self.values["name"])

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """The "bytes" and "sha256" of each file, by its path inside the bundle."""
        files: Mapping[str, Mapping[str, Any]] = self.values["files"]
        return files

    @property
    def resolution(self) -> int:
        """Height and width of an image in pixels."""
        return int(self.values["resolution"])

    @property
    def has_controlnet(self) -> bool:
        """Whether a mask can steer the image."""
        return bool(self.values["mask_palette"]) and all(name in self.values["graphs"] for name in CONTROL_GRAPHS)

    @property
    def palette(self) -> list[PaletteClass]:
        """The classes of a mask; none without a ControlNet."""
        return [
            PaletteClass(
                int(one["number"]),
                str(one["name"]),
                (one["colour"][0], one["colour"][1], one["colour"][2]),
                bool(one.get("trained", True)),
            )
            for one in self.values["mask_palette"]
        ]

    @property
    def is_simulated(self) -> bool:
        """Whether the model has seen simulated images only."""
        data = self.values["training_data"]
        return bool(data) and all(one.get("simulated") for one in data)


def _refuse_outside(name: str, where: str) -> None:
    """Raise SamplerError if a path leads outside the bundle on any system."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise SamplerError(f"{where} names {name!r}, which is outside the bundle; do not use it")
