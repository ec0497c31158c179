"""Whether ranks can share a step's samples, for job scripts: python -m launch.batch_check RANKS CONFIG [KEY=VALUE ...].

Ends with 2 and one line if not.
"""

import sys
from pathlib import Path

from launch.config import load_config
from launch.terminal import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        load_config(Path(sys.argv[2]), sys.argv[3:]).batch.check_ranks(int(sys.argv[1]))
