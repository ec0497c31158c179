"""The error of a bundle that cannot be used, or of a setting that cannot be drawn with."""


class SamplerError(ValueError):
    """What a user gave is wrong. One line: what was found, what was needed, what mends it; the command exits with 2."""
