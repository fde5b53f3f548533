"""What a person types to add a package that is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def install_command(packages: Sequence[str]) -> str:
    """What to type so that this very Python has the packages."""
    return f'"{sys.executable}" -m pip install {" ".join(packages)}'
