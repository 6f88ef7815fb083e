"""The version of LLM OS that runs here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """As it was installed; empty where it runs from its source alone."""
    try:
        return version("llm-os")
    except PackageNotFoundError:
        return ""
