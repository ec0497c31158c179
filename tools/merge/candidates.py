"""The models that a merge is chosen from, and how good a merge of them is: its loss on what was held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from data.loader import BatchSlicing
from distributed.placement import training_dtype
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.lineage import refuse_trained_on_held_out
from launch.run_shards import open_shards
from launch.validation import HeldOut
from models.base import noise_schedule
from models.merging.folder import Merge
from models.merging.merged import Merged
from models.merging.parent import Parent
from models.merging.recipe import Recipe, make_recipe
from models.merging.source import Source
from models.stable_diffusion import load_unet
from tools.merge.checkpoint_source import open_model

CHOSEN_ON = "validation"
REPORTED_ON = ("validation", "test")
# Weights are tried, and written, to so many decimals.
DECIMALS = 2

Losses = dict[str, float]
Weights = tuple[float, ...]


@dataclass
class Candidates:
    """Models by name, one UNet in memory that takes on the weights of any mean of theirs, and what they are tried on.

    parents: the models. held_out, databases: what a loss is the mean over.
    """

    config: RunConfig
    parents: Mapping[str, Parent]
    held_out: HeldOut
    unet: torch.nn.Module
    num_evaluations: int = 0
    _known: dict[tuple[str, Weights], Losses] = field(default_factory=dict)

    @classmethod
    def open(cls, config: RunConfig, sources: Sequence[str] = ()) -> "Candidates":
        """Return the finished stages of a run that trained a UNet, and the models of `sources` beside them.

        Raises: ConfigError if there are fewer than two; the error of whatever is wrong.
        """
        stages = [stage for stage in config.stages if stage.network == "unet" and config.is_finished(stage)]
        labels = {stage.name: str(config.stage_model(stage)) for stage in stages} | {label: label for label in sources}
        if len(labels) < 2:
            found = ", ".join(labels) or "none"
            raise ConfigError(f"a merge is chosen from at least two finished stages, found {found}: train them first")
        parents = {name: open_model(label) for name, label in labels.items()}
        schedule = noise_schedule(config.model)
        for parent in parents.values():
            if parent.prediction_type != schedule.prediction_type:
                raise ConfigError(
                    f"{parent.label} predicts {parent.prediction_type}, and the losses of {config.run} are of"
                    f" {schedule.prediction_type}: leave it out"
                )
        shards = open_shards(config)
        for label in sources:
            refuse_trained_on_held_out(config, shards, label, parents[label].lineage)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = config.batch.micro_size
        held_out = HeldOut(config, schedule, shards, BatchSlicing(size, size, 0, 1), device)
        if not held_out.databases(CHOSEN_ON):
            raise ConfigError(f"no database of {config.run} has a {CHOSEN_ON} split: set prepare.validation_fraction")
        unet = load_unet(next(iter(parents.values())).config, training_dtype(config.precision))
        candidates = cls(config, parents, held_out, unet.requires_grad_(False).to(device))
        Merge(candidates.recipe([1.0] * len(parents)), list(parents.values()))  # refuses what cannot be merged
        return candidates

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names: the stages', in the configuration's order, then the others."""
        return tuple(self.parents)

    def single(self, name: str) -> Weights:
        """Return the weights of one model alone."""
        return tuple(float(name == other) for other in self.names)

    def recipe(self, weights: Sequence[float]) -> Recipe:
        """Return the recipe of a mean: of those models that have a share in it."""
        chosen = {name: weight for name, weight in zip(self.names, weights, strict=True) if weight > 0}
        labels = [self.parents[name].label for name in chosen]
        return make_recipe(sources=labels, weights=list(chosen.values()), part="unet")

    def losses(self, weights: Sequence[float], split: str = CHOSEN_ON) -> Losses:
        """Return the loss of a mean on every database that has the split."""
        key = (split, rounded(weights))
        if key not in self._known:
            chosen = [name for name, weight in zip(self.names, key[1], strict=True) if weight > 0]
            Merged(self.recipe(key[1]), self._sources(chosen)).fill(self.unet)
            self._known[key] = self.held_out.losses(self.unet, self.held_out.databases(split), split)
            self.num_evaluations += 1
        return self._known[key]

    def score(self, weights: Sequence[float], split: str = CHOSEN_ON) -> float:
        """Return the mean over databases of the loss relative to the lowest one of any single model there.

        So databases count equally, whatever size their losses have. 1 would be a model that is everywhere as good as
        the best one for that database. Lower is better.
        """
        lowest = self.lowest(split)
        losses = self.losses(weights, split)
        return sum(losses[name] / lowest[name] for name in lowest) / len(lowest)

    def lowest(self, split: str) -> Losses:
        """Return the lowest loss of any single model on each database."""
        singles = [self.losses(self.single(name), split) for name in self.names]
        return {name: min(losses[name] for losses in singles) for name in singles[0]}

    def parents_of(self, weights: Sequence[float]) -> list[Parent]:
        """Return those models that have a share."""
        return [parent for parent, weight in zip(self.parents.values(), weights, strict=True) if weight > 0]

    def _sources(self, names: Sequence[str]) -> list[Source]:
        return [self.parents[name].networks["unet"] for name in names]


def rounded(weights: Sequence[float]) -> Weights:
    """Return weights as shares, to the decimals that are tried."""
    total = sum(weights)
    return tuple(round(weight / total, DECIMALS) for weight in weights)
