"""What a key, and a file's path in a manifest, may look like. The same rule for every adapter."""

from __future__ import annotations

from shared.store.port import InvalidKey

MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 255


def check_key(key: str) -> str:
    """The key itself when it is relative, never climbs and fits into every file system. Raises InvalidKey."""
    problem = _problem(key)
    if problem:
        raise InvalidKey(f"{key!r} cannot name an object: {problem}")
    return key


def check_prefix(prefix: str) -> str:
    """A prefix is empty or a key with '/' at its end. Raises InvalidKey."""
    if prefix and not prefix.endswith("/"):
        raise InvalidKey(f"the prefix {prefix!r} must end in '/'")
    if prefix:
        check_key(prefix[:-1])
    return prefix


def _problem(key: str) -> str:
    parts = key.split("/")
    if not key:
        return "it is empty"
    if key.startswith("/"):
        return "it is absolute"
    if any(part in {"", ".", ".."} for part in parts):
        return "it has an empty, '.' or '..' part"
    if "\\" in key or not key.isprintable():
        return "it holds a backslash or a character that does not print"
    if len(key.encode()) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return f"it is longer than {MAX_KEY_BYTES} bytes, or a part of it than {MAX_NAME_BYTES}"
    return ""
