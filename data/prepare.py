"""From databases to the manifest: what is broken or doubtful is found, and every image gets its split, once."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.databases import AnyDatabase
from data.errors import DataError
from data.hints import NO_HINT
from data.inspection import Inspection, inspect
from data.manifest import PALETTE, Drawn, Manifest, ManifestRow
from data.quality.faults import Findings, Inspected, Remembered, find_faults
from data.quality.look import Look
from data.quality.report import Shown, write_report
from data.quality.rules import FAULTS, Fault, QualityConfig
from data.splits import Candidate, Split, assign, keyed_hash, known_split

if TYPE_CHECKING:
    import pandas as pd

OnFault = Literal["skip", "refuse"]


class PrepareConfig(BaseModel):
    """How databases become a manifest."""

    model_config = ConfigDict(extra="forbid")

    on_undecodable: OnFault = Field(
        "refuse", description="An image or mask that cannot be decoded: leave its image out (skip), or stop (refuse)."
    )
    on_mask_mismatch: OnFault = Field(
        "refuse",
        description="A mask of another size than its image, or with values that mean no class: leave its image out "
        "(skip), or stop (refuse).",
    )
    quality: QualityConfig = QualityConfig()
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of a database's images, by patient, that are held out for validation."
    )
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of a database's images, by patient, that are held out for the end."
    )
    seed: int = Field(0, ge=0, description="Key of the draw of splits. It counts only for images not yet drawn.")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"validation_fraction + test_fraction is {held_out:g}, needed less than 1")
        return self


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    rows: of the manifest, by id. dropped: rows that a rule left out. findings, looks: of all images that could be read.
    skipped: id -> why it was left out. num_new: rows that the stored manifest did not have.
    """

    manifest: Path
    rows: Mapping[str, ManifestRow]
    dropped: Mapping[str, ManifestRow]
    findings: Findings
    looks: Mapping[str, Look]
    skipped: Mapping[str, str]
    num_new: int
    config: QualityConfig = field(default_factory=QualityConfig)

    @property
    def num_images(self) -> int:
        """Images in the manifest."""
        return len(self.rows)

    @property
    def counts(self) -> Mapping[tuple[str, str, Split], int]:
        """Images by database, label and split."""
        counts = Counter((row.database, row.label, known_split(row.split or "")) for row in self.rows.values())
        return dict(sorted(counts.items()))

    def num_faulty(self, fault: Fault) -> int:
        """Return how many images have a fault, those dropped among them."""
        return sum(any(faulty.fault == fault for faulty in of) for of in self.findings.faults.values())

    def table(self) -> "pd.DataFrame":
        """Return the number of images, a row per database and label, a column per split, with sums."""
        import pandas as pd

        cells = pd.Series(dict(self.counts)).rename_axis(["database", "label", "split"])
        table = cells.unstack("split", fill_value=0).reindex(columns=["train", "validation", "test"], fill_value=0)
        table.loc[("all", ""), :] = table.sum()
        return table.astype(int).assign(all=lambda counts: counts.sum(axis=1))

    def write_html(self, path: Path) -> None:
        """Replace the report at `path`, with thumbnails of all that a rule concerns."""
        rules = self.config.rules
        images = []
        for id_, faults in self.findings.faults.items():
            if concerned := [faulty for faulty in faults if rules.action(faulty.fault) != "keep"]:
                row = self.rows.get(id_) or self.dropped[id_]
                done = "flagged" if id_ in self.rows else "dropped"
                look = self.looks[id_]
                images.append(Shown(id_, row.image, row.masks, row.mask_classes, look, concerned, done))
        counts = [[*names, *numbers] for names, numbers in zip(*_cells(self.table()), strict=True)]
        facts = {
            "images": self.num_images,
            "dropped": len(self.dropped),
            "skipped": len(self.skipped),
            "near-duplicates up to": f"{self.config.near_duplicate_bits} of 256 bits",
            "crop": self.config.crop,
        }
        write_report(path, images, counts=counts, skipped=self.skipped, config=self.config, facts=facts)

    def __str__(self) -> str:
        lines = [self.table().to_string(), f"{self.num_images} images, {self.num_new} of them new: {self.manifest}"]
        for fault in FAULTS:
            num_faulty, action = self.num_faulty(fault), self.config.rules.action(fault)
            if num_faulty and action != "keep":
                lines.append(f"{num_faulty} {fault.replace('_', ' ')}: prepare.quality.rules.{fault}={action}")
        if self.dropped:
            lines.append(f"{len(self.dropped)} dropped by these rules")
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped:")
            lines += [f"  {id_}: {reason}" for id_, reason in self.skipped.items()]
        return "\n".join(lines)


def prepare(
    databases: Mapping[str, AnyDatabase],
    config: PrepareConfig,
    out: Path,
    workspace: Path,
    progress: Callable[[int], None] | None = None,
) -> PrepareReport:
    """Write the manifest of `databases` to `out`; rows that it has already keep their split and their place.

    workspace: a folder for the files that databases make. progress: called with the number of images read.
    Raises: DataError, with the old manifest untouched.
    """
    stored = Manifest.read(out) if out.exists() else Manifest(rows=(), palette=PALETTE)
    if not databases:
        raise DataError("there are no databases; needed at least one under `databases`")
    found = inspect(databases, workspace, progress)
    _refuse(found, found.undecodable, "cannot be decoded", config.on_undecodable, "on_undecodable")
    _refuse(found, found.mismatched, "have a mask that does not fit", config.on_mask_mismatch, "on_mask_mismatch")
    keys = {row.key for row in found.rows.values()}
    gone = [Remembered(drawn.key, drawn.sha256, drawn.likeness) for drawn in _absent(keys, stored)]
    findings = find_faults([_inspected(row, found) for row in found.rows.values()], config.quality, gone)
    dropped = {id_: row for id_, row in found.rows.items() if _is_dropped(findings, id_, config.quality)}
    rows = [_judged(row, found, findings, config.quality) for id_, row in found.rows.items() if id_ not in dropped]
    rows = _with_splits(_in_order(rows, stored, config.seed), list(dropped.values()), findings.groups, stored, config)
    _refuse_empty_splits(databases, rows, config)
    names = {name for row in rows for name in row.mask_classes.values()}
    palette = stored.palette + tuple(sorted(names - set(stored.palette)))
    if len(palette) > NO_HINT:
        raise DataError(f"the masks have {len(palette)} classes, needed at most {NO_HINT} over all databases")
    drawn_with = config.model_dump(include={"validation_fraction", "test_fraction", "seed"})
    if stored.rows and stored.drawn_with != drawn_with:
        was = ", ".join(f"{name}={value:g}" for name, value in stored.drawn_with.items())
        warnings.warn(f"stored splits stay as drawn with {was}: the new ones are for new images only", stacklevel=2)
    Manifest(tuple(rows), palette, drawn_with, _absent({row.key for row in rows}, stored)).write(out)
    before = {row.key for row in stored.rows}
    return PrepareReport(
        manifest=out,
        rows={row.id: row for row in rows},
        dropped=dropped,
        findings=findings,
        looks=found.looks,
        skipped=found.undecodable | found.mismatched,
        num_new=sum(row.key not in before for row in rows),
        config=config.quality,
    )


def _cells(table: "pd.DataFrame") -> tuple[list[tuple[str, str]], list[list[int]]]:
    """Return a table's row names and its numbers."""
    return list(table.index), table.to_numpy().tolist()


def _refuse(found: Inspection, faults: Mapping[str, str], what: str, setting: OnFault, name: str) -> None:
    """Raise the DataError for `faults`, if there are any and the setting says so."""
    if faults and setting == "refuse":
        reason = next(iter(faults.values()))
        raise DataError(
            f"{len(faults)} of {found.num_seen} images {what}: {_some(list(faults))} ({reason}); "
            f"mend them, or set prepare.{name}=skip to leave them out"
        )


def _inspected(row: ManifestRow, found: Inspection) -> Inspected:
    return Inspected(
        id=row.id,
        key=row.key,
        label=row.label,
        sha256=row.sha256,
        patient=row.patient,
        size=row.width * row.height,
        flags=row.flags,
        look=found.looks[row.id],
    )


def _is_dropped(findings: Findings, id_: str, config: QualityConfig) -> bool:
    return any(
        config.rules.action(faulty.fault) == "drop" and not faulty.is_best for faulty in findings.faults.get(id_, ())
    )


def _judged(row: ManifestRow, found: Inspection, findings: Findings, config: QualityConfig) -> ManifestRow:
    """Return a row with the flags of its faults, and cut as the setting says."""
    faults = [f.fault for f in findings.faults.get(row.id, ()) if config.rules.action(f.fault) != "keep"]
    crop = found.looks[row.id].area if config.crop == "area" else None
    if crop == (0, 0, row.width, row.height):
        crop = None
    return replace(row, flags=tuple(dict.fromkeys((*row.flags, *faults))), crop=crop)


def _with_splits(
    rows: Sequence[ManifestRow],
    dropped: Sequence[ManifestRow],
    groups: Mapping[str, str],
    stored: Manifest,
    config: PrepareConfig,
) -> list[ManifestRow]:
    """Return the rows with split and cluster. dropped: images that are left out, but tie others to their patients."""
    drawn_before = {drawn.key: drawn.split for drawn in (*map(Drawn.of, stored.rows), *stored.absent)}
    candidates = [
        Candidate(
            id=row.id,
            database=row.database,
            label=row.label,
            ties=_ties(row, groups),
            own=known_split(row.split) if row.split else None,
            stored=drawn_before.get(row.key),
        )
        for row in rows
    ]
    candidates += [
        Candidate(id=gone.key, database=gone.database, label=gone.label, ties=_ties(gone, groups), stored=gone.split)
        for gone in _absent({row.key for row in rows}, stored)
    ]
    candidates = _tied_over(candidates, [_ties(row, groups) for row in dropped])
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    assigned = assign(candidates, fractions, config.seed)
    _warn_of_own_splits(rows, {row.id: assigned[row.id].split for row in rows}, drawn_before)
    return [replace(row, split=assigned[row.id].split, cluster=assigned[row.id].cluster) for row in rows]


def _tied_over(candidates: Sequence[Candidate], dropped: Sequence[tuple[str, ...]]) -> list[Candidate]:
    """Return candidates with ties over images that are left out: what those tie together counts as one tie.

    dropped: the ties of each. They are no candidates themselves, as they would take a share of the splits.
    """
    from scipy.cluster.hierarchy import DisjointSet

    joined = DisjointSet({tie for ties in dropped for tie in ties})
    for first, *others in dropped:
        for other in others:
            joined.merge(first, other)
    roots = {tie: joined[tie] for ties in dropped for tie in ties}
    return [replace(candidate, ties=tuple(roots.get(tie, tie) for tie in candidate.ties)) for candidate in candidates]


def _warn_of_own_splits(
    rows: Sequence[ManifestRow], splits: Mapping[str, Split], drawn_before: Mapping[str, Split]
) -> None:
    """Warn where a database's own split is not what an image has."""
    other = [row for row in rows if row.split and splits[row.id] != known_split(row.split) != "train"]
    if not other:
        return
    why = "share a patient or a picture with images of another split"
    if any(row.key in drawn_before for row in other):
        why = "were drawn before the database gave its own; remove the manifest to draw anew"
    which = f"{len(other)} images, such as {other[0].id}"
    warnings.warn(f"{which}, are not in their database's own split: they {why}", stacklevel=2)


def _ties(row: ManifestRow | Drawn, groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return what an image must not be parted over: its patient, its file, the images that it is like."""
    patient = (f"patient {row.patient}",) if row.patient is not None else ()
    alike = (f"alike {groups[row.key]}",) if row.key in groups else ()
    return (*patient, f"file {row.sha256}", *alike)


def _absent(keys: Collection[str], stored: Manifest) -> tuple[Drawn, ...]:
    """Return what is remembered of all images that a manifest ever had and that are not among `keys`."""
    known = {drawn.key: drawn for drawn in (*stored.absent, *map(Drawn.of, stored.rows))}
    return tuple(known[key] for key in sorted(known.keys() - set(keys)))


def _in_order(rows: Sequence[ManifestRow], stored: Manifest, seed: int) -> list[ManifestRow]:
    """Return the stored rows in their places, then the new ones in the order of a keyed hash.

    So a shard is a mix of labels, and new images leave the shards before them as they are.
    """
    places = {row.id: place for place, row in enumerate(stored.rows)}
    return sorted(rows, key=lambda row: (places.get(row.id, len(places)), keyed_hash(row.id, seed)))


def _refuse_empty_splits(names: Mapping[str, AnyDatabase], rows: Sequence[ManifestRow], config: PrepareConfig) -> None:
    for name in names:
        mine = [row for row in rows if row.database == name]
        if not mine:
            raise DataError(f"database {name} has no images left: look at what was skipped")
        for split in ("train", "validation"):
            if not any(row.split == split for row in mine):
                num_clusters = len({row.cluster for row in mine})
                raise DataError(
                    f"database {name} has no {split} images: {len(mine)} images of {num_clusters} patients or files "
                    f"at validation_fraction={config.validation_fraction:g} and "
                    f"test_fraction={config.test_fraction:g}; add images, or change the fractions"
                )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
