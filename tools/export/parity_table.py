"""The small table of how near exported graphs are to torch."""

from __future__ import annotations

from tools.export.model_card import LABELS
from tools.export.parity import Parity


def parity_table(parity: Parity) -> str:
    """Return a line on each thing that was compared, for a terminal."""
    width = max(map(len, LABELS.values()))
    lines = [f"{'onnxruntime against torch':{width}}  {'differs by':>10}  {'at most':>10}"]
    for key, error in parity.errors.items():
        limit = parity.limits[key]
        if error is not None and limit is not None:
            lines.append(f"{LABELS[key]:{width}}  {error:>10.2g}  {limit:>10.2g}")
    return "\n".join(lines)
