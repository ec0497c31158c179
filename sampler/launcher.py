"""Draw images from this bundle. `python sample.py --help` says how; needed: onnxruntime numpy pillow tokenizers."""

import sys
from pathlib import Path

from sampler.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="python sample.py", bundle=Path(__file__).resolve().parent))
