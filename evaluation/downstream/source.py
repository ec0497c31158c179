"""Where an experiment's generated images come from: a stage draws them, or a folder has them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.manifest import Manifest, ManifestRow
from evaluation.evenly import evenly
from evaluation.generated_images import GeneratedImages, generated_databases, read_generated
from evaluation.stage_images import draw_rows, stage_to_draw
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.stage_config import StageConfig
from models.base import resolution_of
from models.record import record_sha256

MIN_GENERATED = 2
# Networks see no larger images: they are small, and classifiers of the field see 224 pixels.
MAX_PIXELS = 256
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Of a run's generated images, [N, resolution, resolution].

    stage: that draws, or whose training images an experiment is about; None only with a folder. num_images: None: of a
    stage, as many as the database has training images; of a folder, all.
    """

    config: RunConfig
    manifest: Manifest
    stage: StageConfig | None
    folder: Path | None
    num_images: int | None
    say: Say

    @property
    def resolution(self) -> int:
        """Height and width of all images of an experiment, pixels."""
        return min(resolution_of(self.config.model), MAX_PIXELS)

    @property
    def name(self) -> str:
        """What drew the images, for people."""
        if self.folder is not None:
            return f"folder {self.folder.resolve().name}"
        assert self.stage is not None
        return f"stage {self.stage.name}"

    @property
    def model_sha256(self) -> str | None:
        """Of the record of the model that draws; None where a folder has the images."""
        if self.folder is not None:
            return None
        assert self.stage is not None
        return record_sha256(self.config.stage_model(self.stage))

    @property
    def databases(self) -> list[str]:
        """The databases that the images may be of."""
        return list(self.config.databases) if self.stage is None else self.config.databases_seen(self.stage)

    def why_without(self, database: str) -> str | None:
        """Return why there are too few images of a database, before any is read or drawn; None: there are enough."""
        if self.folder is None:
            return None
        num = len(self._places(self.folder, database))
        if num < MIN_GENERATED:
            return (
                f"{self.folder} has {num} images of it, needed {MIN_GENERATED} (draw more, or name the database of each"
                " in labels.csv)"
            )
        if self.num_images is not None and num < self.num_images:
            return f"{self.folder} has {num} images of it, --num-images asks for {self.num_images}"
        return None

    def rows(self, database: str, split: str) -> list[ManifestRow]:
        """Return the real images of a split."""
        return [row for row in self.manifest.rows if (row.database, row.split) == (database, split)]

    def labelled(self, rows: Sequence[ManifestRow], database: str) -> GeneratedImages:
        """Return images whose labels are among those of `rows`; a stage draws the rows' prompts.

        rows: training images of the database. Raises: DataError if images have no label, or another one.
        """
        if self.folder is None:
            _refuse_shared_prompts(rows, database)
        found = self._images(rows, database)
        known = sorted({row.label for row in rows})
        if not any(found.labels):
            raise DataError(
                f"{self.folder} does not say which labels its images were drawn with, needed a labels.csv with the"
                f" columns file and label ({', '.join(known)}), as `sonoshard sample --per-class` writes"
            )
        if unknown := [place for place, label in enumerate(found.labels) if label not in known]:
            label = found.labels[unknown[0]] or "(none)"
            raise DataError(
                f"{self.name} has {found.files[unknown[0]]} of label {label}, needed one that training images of"
                f" {database} have ({', '.join(known)}): draw those, or mend labels.csv"
            )
        return found

    def masked(self, rows: Sequence[ManifestRow], database: str) -> GeneratedImages:
        """Return images that were drawn from masks; a stage's from those of `rows`, training images of the database.

        Raises: DataError if an image has no mask.
        """
        found = self._images(rows, database)
        without = [file for file, mask in zip(found.files, found.masks, strict=True) if mask is None]
        if without:
            raise DataError(
                f"{self.name} has {without[0]} without the mask that it was drawn from, needed one for every image:"
                " draw from masks with a ControlNet, as `sonoshard sample --mask` does"
            )
        return found

    def _images(self, rows: Sequence[ManifestRow], database: str) -> GeneratedImages:
        folder, num_images = self.folder, self.num_images
        if folder is None:
            assert self.stage is not None
            num_training = len(self.rows(database, "train"))
            num_images = num_images or num_training
            rows = [row for row in rows if row.masks or not self.stage.has_hints]
            if not rows:
                raise DataError(
                    f"{database} has no training image with a mask that stage {self.stage.name} could draw from: give"
                    " --stage with a diffusion stage"
                )
            # Images of other rows are other ones: each experiment keeps its own, and those that agree share them.
            name = f"training-{database}" if len(rows) == num_training else f"training-{database}-{len(rows)}"
            folder = draw_rows(self.config, self.stage, self.manifest.palette, rows, num_images, name, self.say)
        own = self._places(folder, database)
        places = [own[place] for place in evenly(num_images or len(own), len(own))]
        return read_generated(folder, self.config.encode, self.resolution, places, self.manifest.palette)

    def _places(self, folder: Path, database: str) -> list[int]:
        """Return which of a folder's images are of a database. One that names none is of the run's only one."""
        own = ("", database) if len(self.config.databases) == 1 else (database,)
        return [place for place, name in enumerate(generated_databases(folder)) if name in own]


def source_of(
    config: RunConfig,
    stage_name: str | None,
    images: Path | None,
    num_images: int | None,
    say: Say,
    *,
    has_hints: bool = False,
    needs_stage: bool = False,
) -> Source:
    """Return where images come from. Neither a stage nor a folder: the last stage of that kind with a model.

    has_hints: whether images must be drawn from masks. needs_stage: whether a stage is needed beside a folder, too.
    Raises: ConfigError if no stage can draw them; DataError without a manifest.
    """
    if images is not None and stage_name is not None and not needs_stage:
        raise ConfigError("--stage draws images and --images takes those of a folder: give one of them")
    manifest, stage = Manifest.read(config.manifest_path), None
    if stage_name is not None or images is None or needs_stage:
        stage = stage_to_draw(config, stage_name, "controlnet" if has_hints else "diffusion")
    if stage is not None and has_hints and not stage.has_hints:
        raise ConfigError(
            f"stage {stage_name} draws from prompts alone, needed one of kind controlnet, which draws from masks"
        )
    return Source(config, manifest, stage, images, num_images, say)


def _refuse_shared_prompts(rows: Sequence[ManifestRow], database: str) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.prompts[0]].add(row.label)
    for prompt, of_prompt in labels.items():
        if len(of_prompt) > 1:
            raise DataError(
                f"{database} has the prompt {prompt!r} for the labels {', '.join(sorted(of_prompt))}, needed prompts"
                f" that tell labels apart: put {{label}} into databases.{database}.prompts, prepare, encode and train"
            )
