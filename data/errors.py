"""The error of wrong data or a wrong setting about data."""


class DataError(ValueError):
    """What a user gave is wrong. One line: what was found, what was needed, what mends it; the command exits with 2."""
