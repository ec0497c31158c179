"""An experiment on one database after another, and what was found in all of them."""

from collections.abc import Callable
from typing import Any, Literal

from data.errors import DataError
from evaluation.downstream.result import DatabaseResult, Downstream, Experiment, write_result
from evaluation.downstream.source import Source

NUM_SEEDS = 6  # the fewest of which it is significant that all are better: 2 / 2^6 < 0.05


def over_databases(
    source: Source,
    of_database: Callable[[str], DatabaseResult | str],
    *,
    experiment: Experiment,
    measure: Literal["AUC", "Dice"],
    num_seeds: int,
    network: dict[str, Any],
) -> Downstream:
    """Return, and write, what an experiment finds in the databases of a source.

    of_database: gives what is found in one, or why it cannot be taken. network: the settings of the networks.
    Raises: DataError if no database could be taken.
    """
    found, left_out = [], {}
    # Of all databases first: hours of training may lie before the last one.
    without = {database: source.why_without(database) for database in source.databases}
    for database, why in without.items():
        result = why or of_database(database)
        if isinstance(result, str):
            left_out[database] = result
        else:
            found.append(result)
    if not found:
        raise DataError(
            "no database fits this experiment: "
            + "; ".join(f"{name}: {why}" for name, why in left_out.items())
            + ": mend that, or add a database; a test split needs a prepare.test_fraction, prepared in another folder"
        )
    whole = Downstream(
        experiment=experiment,
        measure=measure,
        images_of=source.name,
        resolution=source.resolution,
        num_seeds=num_seeds,
        network=network,
        databases=tuple(found),
        left_out=left_out,
    )
    write_result(source.config, whole)
    return whole
