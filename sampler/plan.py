"""What images a command asks for: each with its prompt, label, seed and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sampler.draw import Wish
from sampler.errors import SamplerError
from sampler.manifest import Manifest
from sampler.masks import GivenMask
from sampler.noise import MAX_SEED

MAX_IMAGES = 1_000_000


@dataclass(frozen=True)
class Planned:
    """An image that a set is to have.

    number: its place, from 1. label, database: of the prompt where the model was trained on it, else "".
    mask: its place among the masks; None: without one.
    """

    number: int
    prompt: str
    label: str
    database: str
    seed: int
    mask: int | None

    @property
    def file(self) -> str:
        """Where the image lies in its set."""
        return f"images/{self.number:06}.png"

    @property
    def mask_file(self) -> str:
        """Where its mask lies, under the same name; "" without one."""
        return "" if self.mask is None else f"masks/{self.number:06}.png"

    def wish(self, negative: str, masks: Sequence[GivenMask]) -> Wish:
        """Return what is to be drawn."""
        return Wish(self.prompt, negative, self.seed, None if self.mask is None else masks[self.mask].numbers_HW)


def plan_prompts(
    manifest: Manifest, prompts: Sequence[str], count: int, seed: int, masks: Sequence[GivenMask]
) -> list[Planned]:
    """Return `count` images of each prompt, with the masks that fit its class in turn; with all, if it has none.

    Raises: SamplerError if no mask fits.
    """
    told = [_told(prompt, manifest) for prompt in prompts]
    return _numbered([one for one in told for _ in range(count)], seed, masks)


def plan_classes(manifest: Manifest, per_class: int, seed: int, masks: Sequence[GivenMask]) -> list[Planned]:
    """Return `per_class` images of each label of each database, its prompts and the masks that fit it in turn.

    Raises: SamplerError if the bundle names no prompt that it was trained on, or no mask fits a class.
    """
    classes = prompts_by_class(manifest)
    if not classes:
        raise SamplerError("the bundle names no prompts that it was trained on; use --prompt and -n")
    told = [prompts[number % len(prompts)] for prompts in classes.values() for number in range(per_class)]
    return _numbered(told, seed, masks)


def _told(prompt: str, manifest: Manifest) -> Mapping[str, str]:
    """Return a prompt with its label and database; empty where several classes, or none, have it."""
    trained = [one for one in manifest.values["prompts"] if one["prompt"] == prompt]
    is_of_one = len({(one["database"], one["label"]) for one in trained}) == 1
    return trained[0] if is_of_one else {"prompt": prompt, "label": "", "database": ""}


def prompts_by_class(manifest: Manifest) -> dict[tuple[str, str], list[Mapping[str, str]]]:
    """Return the prompts of training, by database and label."""
    classes: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for one in manifest.values["prompts"]:
        classes.setdefault((one["database"], one["label"]), []).append(one)
    return dict(sorted(classes.items()))


def _numbered(told: Sequence[Mapping[str, str]], seed: int, masks: Sequence[GivenMask]) -> list[Planned]:
    if not 0 <= seed <= MAX_SEED - len(told):
        raise SamplerError(f"the seed is {seed}; needed is 0 to {MAX_SEED - len(told)}")
    if len(told) > MAX_IMAGES:
        raise SamplerError(f"{len(told)} images were asked for; a set has at most {MAX_IMAGES}: draw several")
    fitting = {one: _fitting(*one, masks) for one in {(one["database"], one["label"]) for one in told}}
    return [
        Planned(
            number=place + 1,
            prompt=one["prompt"],
            label=one["label"],
            database=one["database"],
            seed=seed + place,
            mask=fits[place % len(fits)] if fits else None,
        )
        for place, one in enumerate(told)
        for fits in [fitting[one["database"], one["label"]]]
    ]


def _fitting(database: str, label: str, masks: Sequence[GivenMask]) -> list[int]:
    """Return the places of the masks that fit a class; all for a prompt that is of none."""
    places = [place for place, mask in enumerate(masks) if not database or mask.fits(database, label)]
    if masks and not places:
        raise SamplerError(
            f"no mask fits {database} / {label}: put masks into {database}/{label}/ within the folder of --mask, "
            "or into the folder itself, where they fit all"
        )
    return places
