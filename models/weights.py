"""Where the weights of one part of a diffusers folder lie, and the hash of what is in them. Only safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from models.errors import ModelError

# The file stem that diffusers and transformers give the weights of each part.
STEMS = dict.fromkeys(("unet", "vae", "controlnet"), "diffusion_pytorch_model") | {"text_encoder": "model"}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one part, and the `variant` that diffusers must be told (None: the plain file name)."""

    paths: tuple[Path, ...]
    variant: str | None


def weight_files(folder: Path, part: str) -> WeightFiles:
    """Return the safetensors files of `part` ("unet", "vae", "text_encoder", "controlnet") in a diffusers folder.

    A plain file wins over its float16 variant; a file in shards is named by its index.
    Raises: ModelError if there is none, and says so if there are only pickles, which are never opened.
    """
    home, stem = folder / part, STEMS[part]
    for variant in (None, "fp16"):
        tail = f".{variant}" if variant else ""
        single = home / f"{stem}{tail}.safetensors"
        if single.is_file():
            return WeightFiles((single,), variant)
        index = home / f"{stem}.safetensors.index{tail}.json"
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            shards = tuple(home / Path(name).name for name in sorted(names))
            if absent := [shard.name for shard in shards if not shard.is_file()]:
                raise ModelError(f"{index} names {len(shards)} files, of which {absent[0]} is missing; copy it again")
            return WeightFiles(shards, variant)
    if pickles := sorted(path.name for pattern in PICKLES for path in home.glob(pattern)):
        raise ModelError(
            f"{home} holds only pickled weights ({pickles[0]}), which can run code when opened; {stem}.safetensors is "
            "needed: take a revision of the model that has it, or convert the file on a machine you can lose"
        )
    raise ModelError(f"{home} holds no {stem}.safetensors; the folder is incomplete: copy or download it again")


def hash_weights(paths: Iterable[Path], name_of: Callable[[str], str | None]) -> str:
    """Return the sha256 of all values as float32, in the order of their names: the same for float16 or float32 files.

    `name_of` gives a stored tensor the name that it is hashed under; None leaves it out. So a diffusers folder and the
    single file made from it have one hash, and weights that were saved again without a change keep theirs.
    """
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    places: list[tuple[str, Path, str]] = []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            places += [(name, path, key) for key in file.keys() if (name := name_of(key)) is not None]  # noqa: SIM118
    for name, path, key in sorted(places):
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(key)
        digest.update(f"{name} {tensor.numel()}\n".encode())
        digest.update(tensor.to(torch.float32).contiguous().numpy().data)
    return digest.hexdigest()
