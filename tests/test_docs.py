"""The pages of docs/: links lead somewhere, commands are commands, and what the formats' page reads can be read."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from safetensors.numpy import save_file

from data.databases import Busi
from data.encode import EncodeConfig, encode
from data.prepare import PrepareConfig, prepare
from launch.cli import app
from launch.config import load_config
from launch.lineage import read_lineage
from tests.data.busi_fixture import write_busi
from tests.data.fake_encoder import FakeEncoder

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
ROOT_PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
COMMANDS: Any = typer.main.get_command(app)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(page: Path) -> list[list[str]]:
    """Return the words of every `sonoshard ...` and `sbatch ...` of a page, in code of its own or within a line."""
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"^    (?:srun [-=\w ]+? )?((?:sonoshard|sbatch) .+)$", text, re.MULTILINE)
    inline = re.findall(r"`(?:srun [-=\w ]+? )?((?:sonoshard|sbatch) [^`]+)`", text)
    return [shlex.split(line, comments=True) for line in (*indented, *inline)]


LINES = [
    pytest.param(words, id=f"{page.name}: {' '.join(words)}")
    for page in [*PAGES, *ROOT_PAGES]
    for words in command_lines(page)
]


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), f"{page.name} leads to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} leads to {target}"


def test_every_page_is_listed() -> None:
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"({page.name})" not in listed] == []


@pytest.mark.parametrize("words", LINES)
def test_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "/data")
    program, *rest = words
    if program == "sbatch":
        script = next((word for word in rest if word.endswith(".sh")), None)
        if script is None:  # options alone, with dots for the rest
            assert all(word.startswith("--") or word == "..." for word in rest)
            return
        assert (ROOT / script).is_file()
        rest = rest[rest.index(script) + 1 :]
        usual = ROOT / "configs" / Path(script).with_suffix(".yaml").name.replace("finetune_", "")
        config = rest.pop(0) if rest and rest[0].endswith(".yaml") else usual
        load_config(Path(config), rest)
        return
    name, *arguments = rest
    command = COMMANDS.commands[name]
    if not arguments:
        return
    given = command.make_context(name, list(arguments)).params
    config = given.get("config")
    if config is not None and str(config).startswith("configs/"):
        load_config(Path(config), given.get("overrides") or ())


def test_commands_are_found_and_a_wrong_one_is_not_understood() -> None:
    assert len(LINES) > 15
    with pytest.raises(Exception, match="No such option: --dryrun"):
        COMMANDS.commands["train"].make_context("train", ["configs/busi.yaml", "--dryrun"])


def test_the_model_is_downloaded_as_errors_say() -> None:
    from models.base import how_to_mend

    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    _, command = how_to_mend(name).split("run: ")
    assert f"    {command}\n" in (ROOT / "docs" / "offline-cluster.md").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f"version = {citation['version']}\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert citation["license"] == "Apache-2.0"


# The formats' page

WEIGHT = np.arange(3 * 7, dtype=np.float32).reshape(3, 7)
INT8_WEIGHT = np.random.default_rng(0).standard_normal((64, 4, 4, 4), dtype=np.float32)


def write_checkpoint(folder: Path, cut: str) -> None:
    """Write what two ranks save of a bias and `conv_in.weight`, by distributed/'s own code but for the engine."""
    import torch

    from distributed.checkpoint import FORMAT_VERSION, publish, slices_name
    from distributed.layout import each_layout, whole_layout
    from distributed.slice_file import write_slices
    from distributed.stored_state import slices_key

    values = {"bias": torch.full((5,), -1.0), "conv_in.weight": torch.from_numpy(WEIGHT)}
    group: dict[str, Any] = {"name": "matrices", "optim_bits": 8, "param_names": list(values)}
    group["params"] = list(values.values())
    layout = (whole_layout if cut == "whole" else each_layout)(group, 2)
    partial = folder / ".step-00000010.partial"
    partial.mkdir(parents=True)
    files = {}
    for index in range(2):
        slice_ = torch.zeros(layout.slice_numel)
        for piece in layout.pieces(index):
            part = values[piece.name].reshape(-1)[piece.start : piece.stop]
            slice_[piece.at : piece.at + part.numel()] = part
        name = slices_name(index, 2)
        files[name] = write_slices(partial / name, {slices_key(0, "ema@0.1"): slice_})
    manifest = {"format_version": FORMAT_VERSION, "groups": [layout.to_json()], "files": files}
    publish(partial, folder / "step-00000010", manifest)


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    record = {"stage": "busi", "steps": 10, "base": "tiny", "commit": None}
    (folder / "sonoshard.json").write_text(json.dumps(record), encoding="utf-8")
    lineage: dict[str, np.ndarray] = {}
    for side in ("trained", "held_out"):
        lineage[f"{side}.ties"] = np.zeros(1, dtype=np.uint64)
        lineage[f"{side}.likenesses"] = np.zeros((1, 8), dtype=np.uint8)
    save_file(lineage, folder / "lineage.safetensors")
    assert read_lineage(str(folder)) is not None


def write_bundle(folder: Path) -> None:
    """Write the weights of a bundle, one of them as int8, and of its manifest what the page's example reads."""
    import torch

    from sampler.manifest import FORMAT, VERSION
    from tools.export.bundle_check import file_sha256
    from tools.export.stored_weights import write_weights

    file = folder / "graphs" / "unet.safetensors"
    file.parent.mkdir(parents=True)
    write_weights(file, {"conv_in.weight": torch.from_numpy(INT8_WEIGHT), "bias": torch.ones(3)}, "int8")
    told = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    graphs = {"unet": {"weights": "graphs/unet.safetensors"}}
    manifest = {"format": FORMAT, "version": VERSION, "files": {"graphs/unet.safetensors": told}, "graphs": graphs}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/busi in it."""
    folder = tmp_path_factory.mktemp("formats")
    run = folder / "runs" / "busi"
    prepare({"busi": Busi(root=write_busi(folder))}, PrepareConfig(), run / "manifest.parquet", folder / "work")
    # Of 64 pixels, since its size is nothing to the format.
    encode(run / "manifest.parquet", FakeEncoder(), EncodeConfig(), 64, run / "shards" / "512")
    write_model(run / "stages" / "busi" / "model")
    write_bundle(folder / "bundle")
    return folder


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", [code for code in blocks("formats.md") if "checkpoints" not in code])
def test_files_can_be_read_as_the_page_says(block: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    names: dict[str, Any] = {}
    exec(block, names)
    if "mean" in names:
        assert names["mean"].shape == names["log_variance"].shape == (4, 8, 8)
        assert np.array_equal(names["log_variance"], -names["mean"])  # as the fake encoder has it
        assert names["classes"].shape == (64, 64)
    if "conv_in" in names:
        assert names["tensors"]["conv_in.weight"].dtype == np.int8
        # Half a step of each output channel, and rounding.
        half_step = np.abs(INT8_WEIGHT).max(axis=(1, 2, 3), keepdims=True) / 254
        assert (np.abs(names["conv_in"] - INT8_WEIGHT) <= 1.001 * half_step).all()
        assert np.array_equal(names["weight"]("bias"), np.ones(3, np.float32))


@pytest.mark.parametrize("cut", ["whole", "each"])
def test_a_checkpoint_can_be_read_as_the_page_says(cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "runs/busi/stages/busi/checkpoints", cut)
    monkeypatch.chdir(tmp_path)
    (block,) = [code for code in blocks("formats.md") if "checkpoints" in code]
    names: dict[str, Any] = {}
    exec(block, names)
    assert np.array_equal(names["weight"], WEIGHT)


def test_the_page_has_the_versions_of_the_code() -> None:
    from data import embeddings, manifest, shard_index
    from distributed import checkpoint
    from sampler import manifest as bundle

    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| \[([\w' ]+)\]\(#\w+\) \| .*? \| (\d+) \|", page, re.MULTILINE))
    assert told == {
        "manifest": str(manifest.VERSION),
        "shards": str(shard_index.VERSION),
        "prompts' embeddings": str(embeddings.VERSION),
        "checkpoint": str(checkpoint.FORMAT_VERSION),
        "bundle": str(bundle.VERSION),
    }


def test_the_page_has_every_key_of_a_bundle() -> None:
    from sampler.manifest import KEYS

    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    told = "".join(re.findall(r"^\| (`.*?) \|", page.partition("## Bundle")[2], re.MULTILINE))
    assert {key for key in KEYS if f"`{key}`" not in told} == set()
