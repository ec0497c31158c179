"""What `sonoshard merge` does: makes a recipe of flags or a file, or lets it be chosen; merges; tells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.config import load_config
from launch.errors import ConfigError
from launch.lineage import merged_lineage
from launch.record import versions
from models.merging.folder import Merge
from models.merging.recipe import Recipe, make_recipe
from tools.merge.checkpoint_source import open_model


def merge_and_tell(
    out: Path,
    sources: Sequence[str],
    *,
    flags: Mapping[str, Any],
    recipe_file: Path | None = None,
    greedy_soup_config: Path | None = None,
    search_config: Path | None = None,
    budget: int = 40,
) -> None:
    """Write a merge to `out` and say what it is. flags: of the recipe, as they were typed; None: not given.

    Raises: ConfigError, ModelError, CheckpointError, DataError: one line.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    ways = {"--recipe": recipe_file, "--greedy-soup": greedy_soup_config, "--search": search_config}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} each say what to merge: give one of them")
    if chosen and given:
        flag = f"--{next(iter(given)).replace('_', '-')}".replace("--blocks", "--block")
        raise ConfigError(f"{flag} has no effect with {chosen[0]}: leave it out")
    if out.exists():
        raise ConfigError(f"{out} is there already: remove it, or give another folder")
    if greedy_soup_config or search_config:
        _choose(out, sources, greedy_soup_config, search_config, budget)
        return
    if recipe_file is not None:
        if sources:
            raise ConfigError(f"the sources of a merge with --recipe stand in {recipe_file}: leave {sources[0]} out")
        recipe = read_recipe(recipe_file)
    else:
        if not sources:
            raise ConfigError("nothing to merge: give sources, --recipe, --greedy-soup or --search")
        recipe = make_recipe(sources=list(sources), **_typed(given))
    merge = write_recipe(recipe, out)
    print(
        f"{recipe.method} merge of {len(recipe.sources)} models: {', '.join(merge.parts)}\n"
        f"{out}   (a diffusers folder; a run starts from it with model.base={out})"
    )


def write_recipe(recipe: Recipe, out: Path) -> Merge:
    """Write a diffusers folder of what a recipe makes, with the lineage of all its models. Raises: as above."""
    parents = [open_model(label, recipe.single_file_config) for label in recipe.sources]
    base = open_model(recipe.base, recipe.single_file_config) if recipe.base else None
    merge = Merge(recipe, parents, base)
    lineages = [parent.lineage for parent in [*parents, *([base] if base else [])]]
    merge.write(out, versions(), merged_lineage(lineages))
    return merge


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of a YAML file. Raises: ConfigError, ModelError."""
    import yaml

    if not path.is_file():
        raise ConfigError(f"no recipe {path}: give a YAML file with sources and a method")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, needs keys and values such as `method: soup`")
    return make_recipe(**{str(key): value for key, value in content.items()})


def _choose(out: Path, sources: Sequence[str], greedy: Path | None, searched: Path | None, budget: int) -> None:
    from tools.merge.choice import print_table
    from tools.merge.soup import greedy_soup, search

    if greedy is not None:
        choice = greedy_soup(load_config(greedy), sources)
    else:
        assert searched is not None
        choice = search(load_config(searched), sources, budget)
    print_table(choice.write(out))
    print(f"{out}   (a diffusers folder; a run starts from it with model.base={out})")


def _typed(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags with lists of numbers in place of their text."""
    typed = dict(flags)
    if "weights" in typed:
        typed["weights"] = _numbers("--weights", typed["weights"])
    if "blocks" in typed:
        typed["blocks"] = {}
        for text in flags["blocks"]:
            name, equals, weights = text.partition("=")
            if not equals:
                raise ConfigError(f"--block {text} is not NAME=W,W, such as mid=0.2,0.8")
            typed["blocks"][name] = _numbers(f"--block {name}", weights)
    return typed


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}={text} is not a list of numbers such as 0.5,0.5") from None
