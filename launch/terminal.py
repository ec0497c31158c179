"""What a command says when something is wrong: one line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit code 2."""
    from launch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, USER_ERRORS
    from launch.failure import leave_exit_code

    try:
        yield
    except (*USER_ERRORS, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"sonoshard: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR if isinstance(error, USER_ERRORS) else EXIT_FAILED
        leave_exit_code(code)
        sys.exit(code)
    except KeyboardInterrupt:
        print("sonoshard: interrupted; what is finished is kept, run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def tell_in_lines() -> None:
    """Have warnings shown as notes, and a line written to a log file stand before what comes after it on stderr."""
    warnings.showwarning = show_note
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def show_note(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning as one line, without the place in the code that gave it."""
    print(f"sonoshard: note: {message}", file=sys.stderr)
