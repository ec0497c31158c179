"""What `sonoshard databases` says of the kinds of database that can be read."""

import textwrap
from collections.abc import Iterable
from typing import cast

from data.databases import AnyDatabase, Database
from data.databases.base import PROMPT_FIELDS
from launch.config_errors import did_you_mean, members_by_kind
from launch.errors import ConfigError

WIDTH = 100


def kinds() -> dict[str, type[Database]]:
    """Return the settings model of every kind, by its name in configurations."""
    return cast(dict[str, type[Database]], members_by_kind(AnyDatabase))


def listing() -> str:
    """Return a line on each kind."""
    known = dict(sorted(kinds().items()))
    width = max(map(len, known))
    lines = [f"{name:{width}}  {model.about.title}" for name, model in known.items()]
    return "\n".join([*lines, "", "sonoshard databases KIND tells layout, classes, licence, citation and faults"])


def describe(name: str) -> str:
    """Return all that is known of one kind. Raises: ConfigError if there is none of this name."""
    known = kinds()
    if name not in known:
        near, names = did_you_mean(name, known), ", ".join(sorted(known))
        raise ConfigError(f"no kind of database is named {name!r}{near} (known: {names})")
    model = known[name]
    about = model.about
    named = "any attribute" if model.attributes is None else ", ".join((*PROMPT_FIELDS, *model.attributes))
    settings = [key for key in model.model_fields if key not in ("kind", "prompts")]
    sections: dict[str, Iterable[str]] = {
        "layout": about.layout,
        "labels": [about.labels],
        "masks": [about.masks],
        "patients": [about.patients],
        "licence": [about.licence],
        "citation": [about.citation],
        "faults": about.faults or ["none known"],
        "prompts": model.default_prompts or ["as its images say"],
        "templates": [f"may name {named}"],
        "settings": [f"{key}: {model.model_fields[key].description}" for key in settings],
    }
    lines = [f"{name}: {about.title}", ""]
    for title, texts in sections.items():
        for number, text in enumerate(texts):
            first = f"  {title if number == 0 else '':10}"
            lines += textwrap.wrap(
                text, WIDTH, initial_indent=first, subsequent_indent=" " * 14, break_on_hyphens=False
            )
    return "\n".join(lines)
