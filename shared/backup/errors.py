"""What can go wrong with a backup.

BackupError
├── Unusable       the place, or what is to be saved, cannot be used as asked
├── NoSuchBackup   there is none, or none of that name
├── Damaged        the backup is not what was written
├── Occupied       a restore would go over what is there, or under what runs
└── Away           a server does not answer
"""

from __future__ import annotations


class BackupError(Exception):
    """The message is one sentence for a person."""


class Unusable(BackupError):
    """The place, or what is to be saved, cannot be used as asked."""


class NoSuchBackup(BackupError):
    """There is none, or none of that name."""


class Damaged(BackupError):
    """The backup is not what was written."""


class Occupied(BackupError):
    """A restore would go over what is there, or under what runs."""


class Away(BackupError):
    """A server does not answer."""
