"""Physics-based simulated B-mode pictures with masks: breast, heart, fetal head. No download; no clinical evidence."""

from data.simulate.presets import MASK_CLASSES, PRESETS, Simulated, simulate

__all__ = ["MASK_CLASSES", "PRESETS", "Simulated", "simulate"]
