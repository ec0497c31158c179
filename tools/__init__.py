"""Programs that stand on top of a run: making the built-in model, merging, exporting, verifying."""
