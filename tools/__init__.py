"""Programs that stand on top of a run: demo, doctor, verify, averages, merges, export; what made the built-in model."""
