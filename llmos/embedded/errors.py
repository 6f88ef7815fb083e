"""What keeps the embedded system from starting or stopping."""

from __future__ import annotations


class UpError(Exception):
    """The system cannot start or stop; the message says why and what to do."""


class AlreadyUp(UpError):
    """Another supervisor holds the home."""


class StartInterrupted(Exception):
    """Somebody wants it to stop before it was up."""
