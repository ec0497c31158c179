"""Where a configuration's run lies, for job scripts: python -m launch.run_folder CONFIG [KEY=VALUE ...]."""

import sys
from pathlib import Path

from launch.config import load_config
from launch.terminal import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        print(load_config(Path(sys.argv[1]), sys.argv[2:]).run.absolute())
