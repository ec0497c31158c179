"""Which base models lie in the local cache, and whether what a configuration needs is on disk. Nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tools.doctor.finding import Finding, fine, mend, note

if TYPE_CHECKING:
    from launch.config import RunConfig
    from models.base import ModelConfig

USUAL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def check_cache() -> Iterator[Finding]:
    """Look through the Hugging Face cache for Stable Diffusion models, and at whether each is whole."""
    from huggingface_hub import constants

    from models.base import ModelConfig, how_to_mend

    cache = Path(constants.HF_HUB_CACHE)
    set_by = next((name for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME") if os.environ.get(name)), None)
    where = f"{cache} ({set_by})" if set_by else f"{cache} (HF_HOME is not set)"
    ids = [path.name.removeprefix("models--").replace("--", "/") for path in sorted(cache.glob("models--*"))]
    models = [hub_id for hub_id in ids if _is_pipeline(cache, hub_id)]
    if not models:
        found = f"{where} holds no Stable Diffusion; the built-in model needs none"
        yield note("cache", found, f"for Stable Diffusion 1.5, {how_to_mend(USUAL)}")
        return
    yield fine("cache", where)
    for hub_id in models:
        problem = problem_of_base(ModelConfig(base=hub_id))
        yield fine("cached", f"{hub_id} is whole") if problem is None else note("cached", *_found_and_advice(problem))


def _is_pipeline(cache: Path, hub_id: str) -> bool:
    folder = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/model_index.json")) or any(folder.glob("*/unet"))


def problem_of_base(config: ModelConfig) -> str | None:
    """Return what a base lacks of what is loaded from it, and how to mend it; None if it is whole."""
    from models.base import how_to_mend, open_base
    from models.errors import ModelError
    from models.weights import weight_files

    try:
        base = open_base(config)
        for part in ("unet", "vae", "text_encoder") if base.single_file is None else ():
            try:
                weight_files(base.folder, part)
            except ModelError as error:
                return f"{error}; {how_to_mend(base.name)}"
        base.part_config("scheduler")
        folder = base.folder / "tokenizer"
        if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
            return f"{folder} lacks vocab.json and merges.txt, or tokenizer.json; {how_to_mend(base.name)}"
    except (ModelError, KeyError, ValueError) as error:  # ValueError: a JSON file that was cut off
        return f"{config.base}: {error}" if not isinstance(error, ModelError) else str(error)
    return None


def check_base(config: RunConfig) -> Iterator[Finding]:
    """Check that a configuration's base model is on this machine, whole."""
    problem = problem_of_base(config.model)
    if problem is None:
        yield fine("base", f"{config.model.base} is here and whole")
    else:
        yield mend("base", *_found_and_advice(problem))


def check_databases(config: RunConfig) -> Iterator[Finding]:
    """Check that the folders of a configuration's databases are here, in their layout."""
    from data.databases.base import FolderDatabase
    from data.errors import DataError

    for name, database in config.databases.items():
        if not isinstance(database, FolderDatabase):
            path = getattr(database, "path", None)
            if isinstance(path, Path) and not path.is_file():
                yield mend(name, f"there is no table {path}", f"set databases.{name}.path")
            else:
                yield fine(name, f"{database.kind}, {path or 'made here when it is asked for'}")
            continue
        try:
            database.check_layout()
        except DataError as error:
            yield mend(name, *_found_and_advice(str(error)))
        else:
            yield fine(name, f"{database.kind}, {database.root}")


def check_shards(config: RunConfig, arguments: str) -> Iterator[Finding]:
    """Say whether a configuration's shards were made. arguments: what gives the configuration to a command."""
    from data.shard_index import CONTENTS_FILE
    from models.base import resolution_of

    if problem_of_base(config.model) is not None:
        return  # said above; without the base the resolution is not known
    folder = config.shards_path / str(resolution_of(config.model))
    if (folder / CONTENTS_FILE).is_file():
        yield fine("shards", f"{folder}; `sonoshard verify {folder}` reads every byte")
    elif config.manifest_path.is_file():
        yield note("shards", f"none in {folder}", f"to make them run: sonoshard encode {arguments}")
    else:
        yield note(
            "shards",
            f"none in {folder}",
            f"to make them run: sonoshard prepare {arguments} && sonoshard encode {arguments}",
        )


def _found_and_advice(problem: str) -> tuple[str, str]:
    """Return an error of ours, which ends with what mends it after a semicolon, in two parts."""
    found, _, advice = problem.partition("; ")
    return found, advice or "mend that, or name another one in the configuration"
