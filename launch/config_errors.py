"""What pydantic found wrong in a configuration, as one line that names the key and the nearest that is known."""

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return the first problem of a validation of `model` as one line that names the key, after `prefix`."""
    problems = error.errors()
    # An unknown key says more than the missing key it was meant to be.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    location = first["loc"]
    key = prefix + ".".join(str(part) for part in _without_tags(model, location))
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"unknown key {key}{did_you_mean(str(location[-1]), known)} (known here: {', '.join(known)})"
    if first["type"] == "missing":
        return f"key {key} is missing"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return f"{key}.kind={context['tag']} is unknown{did_you_mean(context['tag'], tags)} (known: {', '.join(tags)})"
    message = first["msg"].removeprefix("Value error, ")
    return message if first["type"] == "value_error" else f"{key}={first['input']!r}: {message}"


def did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return the clause that names the nearest of `known`; nothing if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {nearest[0]}?" if nearest else ""


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the settings at `location`, a path as pydantic reports it."""
    for part in location:
        model = _step_into(model, part)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _without_tags(model: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """Return `location` without the parts that name a member of a union (a database's kind), not a key."""
    parts = []
    for part in location:
        if not members_by_kind(model):
            parts.append(part)
        model = _step_into(model, part)
    return parts


def _step_into(annotation: Any, part: int | str) -> Any:
    """Return the type of `part` (a key, an index, or the kind of a database) within a type."""
    if kinds := members_by_kind(annotation):
        return kinds.get(str(part))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        # A discriminated union keeps its discriminator in the field's metadata; the bare annotation serves here.
        return _without_none(field.annotation) if field else None
    if get_origin(annotation) in (dict, list):
        return get_args(annotation)[-1]
    return None


def _without_none(annotation: Any) -> Any:
    """Return X of `X | None`, and any other type as it is."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members[0] if get_origin(annotation) in (Union, types.UnionType) and len(members) == 1 else annotation


def members_by_kind(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return the members of a union of databases by their `kind`; nothing for another type."""
    if hasattr(annotation, "__metadata__"):  # Annotated[Union, Field(discriminator=...)]
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return {}
    models = [m for m in get_args(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    return {get_args(m.model_fields["kind"].annotation)[0]: m for m in models if "kind" in m.model_fields}
