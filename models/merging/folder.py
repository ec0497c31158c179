"""A merge written as a diffusers folder: its networks anew, everything else as the first parent has it."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.base import PARTS, BaseFiles, ModelConfig, noise_schedule, open_base
from models.durable import flush
from models.errors import ModelError
from models.merging.merged import Merged
from models.merging.parent import Parent
from models.merging.recipe import Recipe, make_recipe
from models.merging.single_file_source import part_source
from models.merging.source import sha256_of_all
from models.merging.writer import write_pieces
from models.record import HINT_COLOURS, RECORD_FILE
from models.weights import PICKLES, STEMS

if TYPE_CHECKING:
    from models.merging.recipe import Part

INDEX = "model_index.json"
NETWORKS: tuple[Part, ...] = ("unet", "controlnet")


class Merge:
    """A recipe with its parents opened and compared. parts: the networks that are merged."""

    def __init__(self, recipe: Recipe, parents: Sequence[Parent], base: Parent | None = None) -> None:
        """Choose the parts. Raises: ModelError if the parents do not fit together."""
        self.recipe, self.parents, self.base = recipe, list(parents), base
        everyone = [*parents, *([base] if base else [])]
        _refuse_other_predictions(everyone)
        wanted = [recipe.part] if recipe.part else NETWORKS
        self.parts = [part for part in wanted if all(part in parent.networks for parent in everyone)]
        if not self.parts:
            lacking = next(parent for parent in everyone if wanted[0] not in parent.networks)
            raise ModelError(f"{lacking.label} has no {wanted[0]}: leave it out, or merge another part")
        if "controlnet" in self.parts:
            _united_colours(everyone)  # refuses others
        self.networks = {
            part: Merged(recipe, [parent.networks[part] for parent in parents], base.networks[part] if base else None)
            for part in self.parts
        }

    def write(self, folder: Path, more_record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write a diffusers folder, whole or not at all. more_record: to stand in its record beside the recipe.

        files: to lie beside it. Raises: ModelError if something is there.
        """
        if folder.exists():
            raise ModelError(f"{folder} is there already: remove it, or give another folder")
        first = self.parents[0]
        told = self._told()
        with _appearing(folder) as partial:
            copy_parts(first.config, partial, [*PARTS, "controlnet"], without_weights=self.parts)
            for part in self.parts:
                self._write_network(partial, part, told)
            _complete_index(partial)
            record = {**self._inherited(partial), "merge": told, "parents": [p.record for p in self.parents]}
            text = json.dumps({**record, **more_record}, indent=1) + "\n"
            for name, content in {**files, RECORD_FILE: text.encode()}.items():
                (partial / name).write_bytes(content)

    def _told(self) -> dict[str, Any]:
        """Return the recipe as it is in the record, with a hash of every parent's weights."""
        everyone = [*self.parents, *([self.base] if self.base else [])]
        hashes = {part: sha256_of_all([parent.networks[part] for parent in everyone]) for part in self.parts}
        described: list[dict[str, Any]] = [
            {"source": parent.label, "sha256": {part: of_part[number] for part, of_part in hashes.items()}}
            for number, parent in enumerate(everyone)
        ]
        sources, shares = described[: len(self.parents)], self.recipe.shares
        num_without = len(sources) - len(shares)  # add-difference takes the first as it is, and gives it no weight
        weighted = [source | {"weight": share} for source, share in zip(sources[num_without:], shares, strict=True)]
        told = {**self.recipe.resolved(), "parts": self.parts, "sources": [*sources[:num_without], *weighted]}
        return told | ({"base": described[-1]} if self.base else {})

    def _inherited(self, folder: Path) -> dict[str, Any]:
        """Return what stays true of the parents' records: the colours that their ControlNet knows."""
        united = _united_colours(self.parents if "controlnet" in self.parts else self.parents[:1])
        return {HINT_COLOURS: united} if united and (folder / "controlnet").is_dir() else {}

    def _write_network(self, folder: Path, part: Part, told: Mapping[str, Any]) -> None:
        home, merged, first = folder / part, self.networks[part], self.parents[0]
        home.mkdir(exist_ok=True)
        if part in first.network_configs:
            text = json.dumps(first.network_configs[part], indent=2) + "\n"
            (home / "config.json").write_text(text, encoding="utf-8")
        metadata = {"format": "pt", "sonoshard.merge": json.dumps(told)}
        write_pieces(home / f"{STEMS[part]}.safetensors", merged.tensors, merged.all_pieces(), metadata)


def _refuse_other_predictions(parents: Sequence[Parent]) -> None:
    first = parents[0]
    for parent in parents[1:]:
        if parent.prediction_type != first.prediction_type:
            raise ModelError(
                f"{parent.label} predicts {parent.prediction_type} and {first.label} {first.prediction_type}: their"
                " weights mean different things, and are not merged"
            )


def _united_colours(parents: Sequence[Parent]) -> dict[str, tuple[int, ...]]:
    """Return the colours that parents' ControlNets know, by class, of those whose record says them.

    Raises: ModelError if two know a class in other colours, or a colour for other classes; one may know more of both.
    """
    seen: dict[object, tuple[str, str, tuple[int, ...]]] = {}
    united: dict[str, tuple[int, ...]] = {}
    for parent in parents:
        for name, colour in ((parent.record or {}).get(HINT_COLOURS) or {}).items():
            united[name] = tuple(colour)
            for key in (name, tuple(colour)):
                label, *known = seen.setdefault(key, (parent.label, name, tuple(colour)))
                if known != [name, tuple(colour)]:
                    raise ModelError(
                        f"{parent.label} was trained on masks with {name} in {tuple(colour)} and {label} with"
                        f" {known[0]} in {known[1]}: their ControlNets are not merged; give --part unet"
                    )
    return united


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder of its own that becomes `folder`, with all its bytes on the disk.

    Raises: ModelError if another process has written `folder` in the meantime, which stays as it is.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            flush(path)
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise ModelError(f"{folder} has been written by another process: it is left as it is") from None
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(folder.parent)


def copy_parts(config: ModelConfig, target: Path, parts: Sequence[str], without_weights: Sequence[str]) -> None:
    """Copy parts of a model to a folder, pickles left out, of some only what is not weights; and its index."""
    base = open_base(config)
    packed = [part for part in ("vae", "text_encoder") if part in parts and base.single_file is not None]
    for part in parts:
        # A single file has no ControlNet, whatever the model has that gives its architecture.
        if (base.folder / part).is_dir() and not (part == "controlnet" and base.single_file is not None):
            weights = ["*.safetensors", "*.safetensors.index*.json"] if part in (*without_weights, *packed) else []
            shutil.copytree(base.folder / part, target / part, ignore=shutil.ignore_patterns(*PICKLES, *weights))
    for part in packed:
        _unpack(config, base, part, target / part)
    if packed:
        scheduler = target / "scheduler" / "scheduler_config.json"
        said = {"prediction_type": noise_schedule(config).prediction_type}
        scheduler.write_text(json.dumps(base.part_config("scheduler") | said, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(base.folder / INDEX, target / INDEX)


def _unpack(config: ModelConfig, base: BaseFiles, part: str, home: Path) -> None:
    """Write a part of a single file beside its configuration, in the dtype that it is stored in."""
    assert base.single_file is not None
    source = part_source(config.base, base.single_file, part, ModelConfig(base=base.name))
    whole = Merged(make_recipe(sources=[config.base]), [source])
    write_pieces(home / f"{STEMS[part]}.safetensors", whole.tensors, whole.all_pieces(), {"format": "pt"})


def _complete_index(folder: Path) -> None:
    """Let a pipeline's index name the parts that lie beside it: no safety checker, which judges photographs."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    if "image_encoder" in index:
        index["image_encoder"] = [None, None]
    if (folder / "controlnet").is_dir():
        index |= {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
