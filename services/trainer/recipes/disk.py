"""The trainer's disk, where it is full."""

from __future__ import annotations

import errno

NO_SPACE = "No space left on device"
"""How libraries say so that write files by themselves, such as safetensors."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, is a disk's or a quota's end."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or NO_SPACE in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
