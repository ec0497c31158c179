"""A Chromium for tests of pages: the machine's, or Debian's package, installed where root may."""

import os
import shutil
from pathlib import Path

import pytest

from tests.apt import INSTALL, install

COMMANDS = ("chromium", "chromium-browser", "google-chrome")
# chromium-driver is not needed: the tests speak to the browser themselves. Fonts for what a page says.
PACKAGES = ("chromium", "fonts-dejavu-core")
DEBIAN = Path("/etc/debian_version")


def chromium() -> str:
    """Return the path of a Chromium, installed first if need be.

    Skips the test where there can be none; where the variable CI says that nothing may be skipped, fails it.
    """
    if found := _found():
        return found
    if os.geteuid() == 0 and DEBIAN.is_file() and shutil.which("apt-get"):
        reason = ""
        try:
            install(PACKAGES)
        except RuntimeError as error:  # without a network, say
            reason = f": {' '.join(str(error).split())}"
        if found := _found():
            return found
    else:
        reason = ", which is installed by itself only for root on Debian"
    line = f"tests of pages need a Chromium ({' '.join([*INSTALL, *PACKAGES])}){reason}"
    if os.environ.get("CI"):
        pytest.fail(line)
    pytest.skip(line)


def _found() -> str | None:
    return next((path for command in COMMANDS if (path := shutil.which(command))), None)
