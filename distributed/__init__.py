"""The engine: ZeRO, 8-bit optimizers, sharded averages, checkpoints, agreed stops."""
