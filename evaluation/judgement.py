"""All that is said of a set of generated images: realism by database, labels, copies."""

# N images, D numbers of each

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data.errors import DataError
from evaluation.classifier import Classifier, ClassifierConfig, train_classifier
from evaluation.feature_distance import Compared, compare, feature_distances
from evaluation.features import Features, trained_features
from evaluation.generated_images import ALL, GeneratedImages
from evaluation.label_agreement import LabelAgreement, class_name, label_score, labels_of
from evaluation.memorisation import Memorisation, memorisation
from evaluation.real_images import RealImages
from evaluation.realism import MIN_CLUSTERS, Scale, realism
from evaluation.ultrasound_statistics import STATISTICS, image_statistics

STATISTICS_AS_FEATURES = "ultrasound statistics, as the training images have one label alone"
MIN_GENERATED = 2

Say = Callable[[str], None]


class DatabaseJudgement(BaseModel):
    """What is said of one database's images. distance: mean over the statistics, as in `Realism`."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_generated: int
    num_real: int
    num_patients: int
    distance: Compared
    statistics_kid: Compared
    statistics: dict[str, Compared]
    fid: Compared
    kid: Compared
    labels: LabelAgreement | None


@dataclass(frozen=True)
class Values:
    """The statistics of a database's images, [N, D], for plots."""

    generated_ND: NDArray[np.float64]
    real_ND: NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """values: by database. left_out: databases that could not be judged, and why."""

    features: str
    databases: tuple[DatabaseJudgement, ...]
    values: Mapping[str, Values]
    copies: Memorisation
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the figures in JSON's types."""
        return {
            "features": self.features,
            "databases": {of.name: of.model_dump(mode="json", exclude={"name"}) for of in self.databases},
            "memorisation": self.copies.to_json(),
            "left_out": dict(self.left_out),
        }


def judge(
    generated: GeneratedImages,
    training: RealImages,
    held_out: RealImages,
    *,
    features: Features | None,
    config: ClassifierConfig,
    seed: int,
    say: Say = print,
) -> Judgement:
    """Return what is said of generated images, each of a database that is held out or `ALL`; see `among`.

    features: None: those of a classifier trained here.
    Raises: DataError if no database has enough held-out patients.
    """
    classes = [class_name(row.database, row.label) for row in training.rows]
    classifier = None
    if len(set(classes)) > 1:
        say(f"a classifier of {len(set(classes))} labels, on {len(training)} real training images")
        classifier = train_classifier(training.images_NHW, classes, config)
    if features is None:
        features = _own_features(classifier, training)
    groups, left_out = _groups(generated, held_out)
    if not groups:
        raise DataError(
            f"no database has {MIN_CLUSTERS} held-out patients and {MIN_GENERATED} generated images to compare: "
            + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    databases, values = [], {}
    for name, places in groups.items():
        say(f"{name}: {len(places)} generated images against real ones")
        real = held_out.where(lambda row, name=name: name in (row.database, ALL))  # type: ignore[misc]
        own = training.where(lambda row, name=name: name in (row.database, ALL))  # type: ignore[misc]
        values[name] = Values(image_statistics(generated.images_NHW[places]), image_statistics(real.images_NHW))
        scale = Scale(image_statistics(own.images_NHW))
        found = compare(
            scale(values[name].generated_ND),
            scale(values[name].real_ND),
            real.clusters,
            _statistics_distances,
            seed,
        )
        of_features = compare(
            features.of(generated.images_NHW[places]),
            features.of(real.images_NHW),
            real.clusters,
            feature_distances,
            seed,
        )
        databases.append(
            DatabaseJudgement(
                name=name,
                num_generated=len(places),
                num_real=len(real),
                num_patients=len(set(real.clusters)),
                distance=found["distance"],
                statistics_kid=found["kid"],
                statistics={statistic: found[statistic] for statistic in STATISTICS},
                **of_features,
                labels=_labels(classifier, name, generated, places, real, seed),
            )
        )
    say("the nearest training image of each")
    copies = memorisation(generated.images_NHW, generated.databases, held_out, training, features)
    return Judgement(features.name, tuple(databases), values, copies, left_out)


def _own_features(classifier: Classifier | None, training: RealImages) -> Features:
    if classifier is not None:
        return trained_features(classifier, training.images_NHW)
    scale = Scale(image_statistics(training.images_NHW))
    return Features(STATISTICS_AS_FEATURES, lambda images_NHW: scale(image_statistics(images_NHW)))


def _groups(generated: GeneratedImages, held_out: RealImages) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return places of the generated images by database, and why others are left out."""
    places = {name: generated.places_of(name) for name in sorted(set(generated.databases))}
    left_out = {}
    for name, of_name in places.items():
        clusters = {row.cluster for row in held_out.rows if name in (row.database, ALL)}
        if len(clusters) < MIN_CLUSTERS:
            left_out[name] = f"{len(clusters)} held-out patients, needed {MIN_CLUSTERS}"
        elif len(of_name) < MIN_GENERATED:
            left_out[name] = f"{len(of_name)} generated image, needed {MIN_GENERATED}"
    return {name: of_name for name, of_name in places.items() if name not in left_out}, left_out


def _statistics_distances(one_ND: NDArray[np.float64], other_MD: NDArray[np.float64]) -> dict[str, float]:
    found = realism(one_ND, other_MD)
    return {"distance": found.distance, "kid": found.kid, **found.statistics}


def _labels(
    classifier: Classifier | None,
    name: str,
    generated: GeneratedImages,
    places: list[int],
    real: RealImages,
    seed: int,
) -> LabelAgreement | None:
    """Return how labels agree; None where there are not two to choose from that were asked for and are held out."""
    if classifier is None:
        return None
    choice = set(labels_of(classifier, name)) & {generated.labels[place] for place in places} & set(real.labels)
    if len(choice) < 2:
        return None
    asked = [place for place in places if generated.labels[place] in choice]
    own = real.where(lambda row: row.label in choice)
    labels = [generated.labels[place] for place in asked]
    files = [generated.files[place] for place in asked]
    return LabelAgreement(
        labels=tuple(sorted(choice)),
        chance=1 / len(choice),
        generated=label_score(classifier, name, generated.images_NHW[asked], labels, files, seed),
        real=label_score(classifier, name, own.images_NHW, own.labels, own.clusters, seed),
    )
