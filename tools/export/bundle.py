"""A bundle: graphs, weights, tokenizer, model card, references and a sampler, in a folder or one .zip."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launch.training_data import training_of
from models.schedule import NoiseSchedule
from sampler.manifest import NAME as MANIFEST_FILE
from tools.export.bundle_check import file_sha256
from tools.export.graph_file import write_graph
from tools.export.manifest import bundle_schedule, described, manifest
from tools.export.masks import mask_palette
from tools.export.model_card import model_card
from tools.export.networks import Networks
from tools.export.parity import Parity, limits, measure, references
from tools.export.source import Source
from tools.export.stored_weights import Precision, write_weights
from tools.export.torch_predictor import TorchPredictor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SAMPLER = Path(__file__).parents[2] / "sampler"
LAUNCHER = "launcher.py"
GRAPHS = "graphs"
CHUNK_BYTES = 2**20
# The oldest that a zip can say: the same bundle makes the same bytes.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
FALLBACK_PROMPT = "ultrasound image"


def write_bundle(source: Source, folder: Path, precision: Precision) -> Parity:
    """Write a bundle to an empty folder and return how near it is to torch.

    Raises: ModelError if it is not near enough, or the model is one that a bundle cannot hold.
    """
    schedule, _ = bundle_schedule(source)
    training = training_of(source.record, source.name)
    palette = mask_palette(source, training)  # whatever refuses does so before anything is computed
    prompt = training.prompts[0]["prompt"] if training.prompts else FALLBACK_PROMPT
    written = _write_graphs(source, schedule, prompt, palette, folder, precision)
    _write_arrays(folder / "parity.npz", written.found)
    (folder / "tokenizer.json").write_text(_tokenizer_json(written.tokenizer), encoding="utf-8")
    copy_sampler(folder)
    said = manifest(source, written.tokenizer, written.graphs, precision, limits(written.found, precision), training)
    said["files"] = {path.relative_to(folder).as_posix(): _told(path) for path in folder.rglob("*") if path.is_file()}
    _write_manifest(folder, said)
    parity = measure(folder, source.name)  # the sampler opens what is shipped, as a user's will
    parity.refuse(source.name)
    card = folder / "MODEL_CARD.md"
    card.write_text(model_card(source, training, parity), encoding="utf-8")
    said["files"][card.name] = _told(card)
    said["parity"]["errors"] = dict(parity.errors)
    _write_manifest(folder, said)
    return parity


def _told(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _write_manifest(folder: Path, said: dict[str, Any]) -> None:
    said["files"] = dict(sorted(said["files"].items()))
    (folder / MANIFEST_FILE).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Written(NamedTuple):
    """What is left of the networks when torch has done its part.

    graphs: what the manifest says of each. found: the content of parity.npz.
    """

    tokenizer: CLIPTokenizer
    graphs: dict[str, dict[str, Any]]
    found: dict[str, NDArray[Any]]


def _write_graphs(
    source: Source,
    schedule: NoiseSchedule,
    prompt: str,
    palette: Sequence[Mapping[str, Any]],
    folder: Path,
    precision: Precision,
) -> Written:
    """Write graphs and weights; afterwards no network is in memory, which onnxruntime is to have for itself.

    They lie in one folder, since onnxruntime refuses weights in any other than the graph's.
    """
    networks = Networks.load(source)
    graphs = networks.graphs(source)
    tokens = {name: _tokens(networks.tokenizer, text) for name, text in (("prompt", prompt), ("empty", ""))}
    found = references(TorchPredictor(graphs), source, schedule, tokens, prompt, palette)
    (folder / GRAPHS).mkdir(parents=True)
    stored = {
        name: write_weights(folder / GRAPHS / f"{name}.safetensors", tensors, precision)
        for name, tensors in networks.weights().items()
    }
    said = {}
    for name, graph in graphs.items():
        # Not of float32, nothing lies where the graph says: whoever runs it hands the weights over.
        location = f"{graph.weights}.{'safetensors' if precision == 'fp32' else 'expanded'}"
        write_graph(graph, folder / GRAPHS / f"{name}.onnx", stored[graph.weights], location)
        files = {"file": f"{GRAPHS}/{name}.onnx", "weights": f"{GRAPHS}/{graph.weights}.safetensors"}
        said[name] = files | described(graph)
    return Written(networks.tokenizer, said, found)


def write_zip(folder: Path, file: Path) -> None:
    """Write all files of a folder to one .zip, not compressed, in the order of their names and without their dates."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), ZIP_DATE)
            entry.external_attr = 0o644 << 16
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)


def copy_sampler(folder: Path) -> None:
    """Put the sampler into a bundle, and `sample.py` that starts it."""
    for path in sorted(SAMPLER.rglob("*")):
        if path.suffix in (".py", ".html"):
            target = folder / "sampler" / path.relative_to(SAMPLER)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copyfile(SAMPLER / LAUNCHER, folder / "sample.py")


def _tokens(tokenizer: CLIPTokenizer, prompt: str) -> NDArray[np.int64]:
    """Return the tokens of one prompt as diffusers' pipeline makes them, [1, L]."""
    length = tokenizer.model_max_length
    found = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="np")
    tokens: NDArray[np.int64] = found.input_ids.astype(np.int64)
    return tokens


def _tokenizer_json(tokenizer: CLIPTokenizer) -> str:
    """Return the fast tokenizer as one JSON file, without what earlier calls set for padding and truncation."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"padding": None, "truncation": None}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz of the same bytes for the same arrays; numpy's own holds the time of writing."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", ZIP_DATE), content.getvalue())
