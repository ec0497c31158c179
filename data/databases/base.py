"""What every database gives: rows of one format, one an image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from data.errors import DataError

# A path as people write it: `~` is their home, and a folder may be named by digits.
UserPath = Annotated[Path, BeforeValidator(str), AfterValidator(Path.expanduser)]

# What a prompt template may name, in braces.
PROMPT_FIELDS = ("label", "organ", "pathology", "view")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a database.

    id: unique within the database. prompts: one or more; training draws among them. label: the class for splits and
    classifiers. masks: files of the image's size, united; none if the database has no mask for it.
    mask_classes: pixel value in the masks -> class name; a single value 255 means binary, cut at 128.
    patient: None if the database does not tell. split: the database's own, if it has one.
    """

    id: str
    image: Path
    prompts: tuple[str, ...]
    label: str
    masks: tuple[Path, ...] = ()
    mask_classes: Mapping[int, str] = field(default_factory=dict)
    organ: str | None = None
    pathology: str | None = None
    view: str | None = None
    patient: str | None = None
    split: str | None = None
    licence: str | None = None
    flags: tuple[str, ...] = ()


class Database(BaseModel):
    """The settings that all kinds of database share; a kind adds its own and says how to find its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_prompts: ClassVar[tuple[str, ...]] = ()

    prompts: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Templates of an image's prompts, with {label}, {organ}, {pathology}, {view}. "
        "None: the database's own.",
    )

    @field_validator("prompts")
    @classmethod
    def _fields_are_known(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for template in templates or ():
            for _, name, _, _ in Formatter().parse(template):
                if name is not None and name not in PROMPT_FIELDS:
                    known = ", ".join(PROMPT_FIELDS)
                    raise ValueError(f"prompt {template!r} names {{{name}}}, needed one of: {known}")
        return templates

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the database's images, always in the same order. workspace: a folder for files that it makes.

        Raises: DataError if what is on disk is not this database.
        """
        raise NotImplementedError

    def fill_prompts(self, **fields: str | None) -> tuple[str, ...]:
        """Return the prompts of an image whose label, organ, pathology and view are `fields`."""
        templates = self.prompts or self.default_prompts
        for template in templates:
            for _, name, _, _ in Formatter().parse(template):
                if name is not None and fields.get(name) is None:
                    raise DataError(f"prompt {template!r} needs {{{name}}}, which an image of this database lacks")
        return tuple(template.format(**fields) for template in templates)


def some_names(folder: Path) -> str:
    """Return a few of the names in a folder, for the message that it is not what was expected."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"
