"""What Windows can't open, where nobody has told it to: paths of 260 characters and more.

https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation
"""

from __future__ import annotations

import sys
from pathlib import Path

from lora_train.core.errors import WorkspaceError

LONGEST = 259
"""Characters of a path, as UTF-16 counts them; the 260th is the end of the text."""


def require_openable(folder: Path, below: int) -> None:
    """Raise WorkspaceError where this machine could not open files whose names take `below` characters in `folder`."""
    length = _utf16_length(str(folder)) + 1 + below
    if length > LONGEST and is_limited():
        raise WorkspaceError(
            f"The paths of files in {folder} would have up to {length} characters; this Windows opens at most "
            f"{LONGEST}.",
            "Choose shorter names, or a workspace nearer to the drive's root; or switch on long paths in Windows "
            "(LongPathsEnabled) and start again.",
        )


def is_limited() -> bool:
    """Whether this is a Windows without long paths, which Python uses where they are switched on."""
    if sys.platform != "win32":
        return False
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return winreg.QueryValueEx(key, "LongPathsEnabled")[0] != 1
    except OSError:
        return True


def _utf16_length(text: str) -> int:
    return len(text.encode("utf-16-le", errors="surrogatepass")) // 2
