"""What is fast, measured. Each program prints a table and one JSON line."""

import os

# Before NumPy is imported: a second BLAS thread spins while it waits, which would count as work of a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
