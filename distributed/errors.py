"""What a user can get wrong about the engine, and what a checkpoint can refuse."""


class EngineError(ValueError):
    """A setting of the engine is wrong; the message says what was found, what was needed and what mends it."""


class CheckpointError(ValueError):
    """A checkpoint does not belong to this run, or is damaged; the message names it and what mends it."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written: another one may take its place."""
