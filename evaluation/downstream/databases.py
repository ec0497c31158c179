"""An experiment on one database after another, and what was found in all of them."""

from collections.abc import Callable
from typing import Any, Literal

from data.errors import DataError
from evaluation.downstream.result import DatabaseResult, Downstream, Experiment, write_result
from evaluation.downstream.source import Source

# Of a database whose turn had not come when the result was written.
NOT_YET = "not tried yet"
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
    # Of all databases first: hours of training may lie before the last one.
    left_out = {database: source.why_without(database) or NOT_YET for database in source.databases}
    whole = Downstream(
        experiment=experiment,
        measure=measure,
        images_of=source.name,
        model_sha256=source.model_sha256,
        resolution=source.resolution,
        num_seeds=num_seeds,
        network=network,
        databases=(),
        left_out=left_out,
    )
    for database in [name for name, why in left_out.items() if why == NOT_YET]:
        result = of_database(database)
        if isinstance(result, str):
            whole = whole.model_copy(update={"left_out": {**whole.left_out, database: result}})
        else:
            others = {name: why for name, why in whole.left_out.items() if name != database}
            whole = whole.model_copy(update={"databases": (*whole.databases, result), "left_out": others})
        if whole.databases:  # what is found of one must not be lost with the next
            write_result(source.config, whole)
    if not whole.databases:
        raise DataError(
            "no database fits this experiment: "
            + "; ".join(f"{name}: {why}" for name, why in whole.left_out.items())
            + ": mend that, or add a database; a test split needs a prepare.test_fraction, prepared in another folder"
        )
    return whole
