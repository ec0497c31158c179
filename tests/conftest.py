"""One thread a process, on every machine: what a small network has learnt differs in the last bit with their number."""

import os

# Before torch is imported. Several processes test side by side, and what they start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
