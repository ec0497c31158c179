"""What a job's script asks of a configuration: python -m launch.job_config QUESTION CONFIG [KEY=VALUE ...].

Questions: `folders` prints the run's and the shards', a line each; `resolved` the whole as one file; `check RANKS`
nothing if so many ranks can share a step's samples. A mistake is one line, and 2.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.config import load_config
from launch.record import config_text
from launch.terminal import one_line_errors


def main(question: str, arguments: Sequence[str]) -> None:
    """Answer a question on stdout. Raises: ConfigError."""
    num_ranks = int(arguments[0]) if question == "check" else None
    path, *overrides = arguments[1:] if question == "check" else arguments
    config = load_config(Path(path), overrides)
    if num_ranks is not None:
        config.batch.check_ranks(num_ranks)
    elif question == "resolved":
        print(config_text(config), end="")
    else:
        print(config.run.absolute(), config.shards_path.absolute(), sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1], sys.argv[2:])
