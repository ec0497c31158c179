"""What every database gives: rows of one format, one per image."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from data.errors import DataError

# A path as people write it: `~` is their home, and a folder may be named by digits.
UserPath = Annotated[Path, BeforeValidator(str), AfterValidator(Path.expanduser)]

# What a database may be called: folders are named for it.
DATABASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# What a prompt template of any database may name, in braces.
PROMPT_FIELDS = ("label", "organ", "pathology", "view")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a person should know of a database before using it; `sonoshard databases NAME` prints it.

    layout: the files as they are downloaded, a line each. patients: what an image is tied to in the splits.
    faults: what is known to be wrong with it, and what is done about it.
    """

    title: str
    layout: tuple[str, ...]
    labels: str
    masks: str
    patients: str
    licence: str
    citation: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a database.

    id: unique within the database. prompts: one or more; training draws among them. label: the class for splits and
    classifiers. masks: files of the image's size, united; none if the database has no mask for it.
    mask_classes: pixel value in the masks -> class name; a single value 255 means binary, cut at 128.
    attributes: what else the database says, in words (shape, margin, BI-RADS ...); templates may name them.
    patient: None if the database does not tell. split: the database's own, if it has one.
    fault: why the image cannot be used, in one line that names the file; `prepare` skips or refuses it, and looks at
    nothing else but its id. None: nothing is known to be wrong.
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
    attributes: Mapping[str, str] = field(default_factory=dict)
    patient: str | None = None
    split: str | None = None
    licence: str | None = None
    flags: tuple[str, ...] = ()
    fault: str | None = None


class Database(BaseModel):
    """The settings that all kinds of database share; a kind adds its own and says how to find its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: ClassVar[About]
    default_prompts: ClassVar[tuple[str, ...]] = ()
    # Names of the attributes that its rows may have. None: any.
    attributes: ClassVar[tuple[str, ...] | None] = ()

    prompts: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Templates of an image's prompts, with {label}, {organ}, {pathology}, {view} and the attributes "
        "that `sonoshard databases KIND` lists. One that an image cannot fill is left out. None: the database's own.",
    )
    patients: str | None = Field(
        None,
        min_length=1,
        description="The name under which its patients' ids are known. Databases of one hospital that number their "
        "patients alike give the same name: then one id is one patient, and no split parts it. None: the database's "
        "own name, so that its patients are its own.",
    )

    @field_validator("prompts")
    @classmethod
    def _fields_are_known(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if cls.attributes is not None:
            known = (*PROMPT_FIELDS, *cls.attributes)
            for template in templates or ():
                if unknown := [name for name in _fields(template) if name not in known]:
                    raise ValueError(f"prompt {template!r} names {{{unknown[0]}}}, needed one of: {', '.join(known)}")
        return templates

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the database's images, always in the same order. workspace: a folder for files that it makes.

        Raises: DataError if what is on disk is not this database.
        """
        raise NotImplementedError

    def fill_prompts(self, **fields: str | None) -> tuple[str, ...]:
        """Return the prompts of an image whose label, organ, attributes ... are `fields`; None is not known.

        Raises: DataError if it can fill none of the templates.
        """
        templates = self.prompts or self.default_prompts
        filled = [t.format(**fields) for t in templates if all(fields.get(name) is not None for name in _fields(t))]
        if templates and not filled:
            missing = next(name for name in _fields(templates[0]) if fields.get(name) is None)
            raise DataError(f"prompt {templates[0]!r} needs {{{missing}}}, which an image of this database lacks")
        return tuple(dict.fromkeys(filled))


class FolderDatabase(Database):
    """A database that lies in one folder as it was downloaded."""

    # What must be there, relative to `root`: folders, whose names end in '/', and files.
    needed: ClassVar[tuple[str, ...]]

    root: UserPath = Field(description="The folder as it was downloaded; `sonoshard databases KIND` shows its layout.")

    def check_layout(self) -> None:
        """Raise DataError, with what was found and what was needed, if something in `needed` is missing."""
        if not self.root.is_dir():
            raise self.error(f"{self.root} is a file" if self.root.exists() else f"there is no folder {self.root}")
        if missing := [name.rstrip("/") for name in self.needed if not (self.root / name.rstrip("/")).exists()]:
            raise self.error(f"{self.root} lacks {', '.join(missing)} (found {some_names(self.root)})")
        for name in self.needed:
            path, is_folder = self.root / name.rstrip("/"), name.endswith("/")
            if path.is_dir() != is_folder:
                kinds = ("file", "folder")
                raise self.error(f"{path} is a {kinds[not is_folder]}, needed a {kinds[is_folder]}")

    def error(self, found: str) -> DataError:
        """Return the error that says what was found, and the layout that was needed."""
        kind = type(self).model_fields["kind"].default
        return DataError(
            f"{kind}: {found}; needed {', '.join(self.about.layout)}: set root, or see `sonoshard databases {kind}`"
        )


def some_names(folder: Path) -> str:
    """Return a few of the names in a folder, for the message that it is not what was expected."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
