"""The engine: ZeRO, 8-bit optimizers, sliced averages, checkpoints, agreed stops."""
