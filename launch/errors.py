"""What the command line answers with one line and exit code 2: everything that the user gave and can mend."""

from data.errors import DataError
from distributed.errors import CheckpointError, EngineError
from models.errors import ModelError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request with a checkpoint saved; run again to go on
EXIT_INTERRUPTED = 130  # 128 + SIGINT: stopped at once, nothing saved


class ConfigError(ValueError):
    """The configuration is wrong; the message says what was found, what was needed and what mends it."""


USER_ERRORS = (ConfigError, DataError, ModelError, EngineError, CheckpointError)
