#!/usr/bin/env bash
# Training of Stable Diffusion 1.5's architecture (random weights: nothing is downloaded) on one CUDA GPU, and the other
# benchmarks that a GPU is something to; writes docs/benchmarks-gpu.md. Some two hours; called again it goes on, and
# benchmarks.gpu does not measure again what is in runs/benchmarks-gpu. PYTHON: another interpreter, of torch 2.11 to 2.13.
# Before the page is committed: a line for it in docs/README.md, where every page is listed.
#
#   benchmarks/gpu.sh                   all
#   benchmarks/gpu.sh --only gpu        one of them; for less: python -m benchmarks.gpu --cells 'diffusion-*-adamw8bit'
#   benchmarks/gpu.sh --quick           the built-in model and the smallest sizes, without a GPU too, to try it
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
export HF_HUB_OFFLINE=1

if [[ ! " $* " =~ " --quick "|" --help " ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch finds no CUDA device here; --quick tries the programs without one" >&2
    exit 2
fi
exec "$python" -m benchmarks --gpu "$@"
