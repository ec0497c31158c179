"""The error of a wrong base model or a wrong setting of one."""


class ModelError(ValueError):
    """What a user gave is wrong. One line: what was found, what was needed, what mends it; the command exits with 2."""
