"""What docker-compose.yml says of our services, so that tests run them as it does, without containers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])((?:[^${}]|\$\{[^{}]*\})*))?\}")
"""A default may hold another variable."""


class ComposeFile:
    """The services as they are with `variables` set over those of .env.example."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        example = {name: value or "" for name, value in dotenv_values(ROOT / ".env.example").items()}
        self.variables = {**example, **variables}
        self.services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    def command(self, service: str) -> list[str]:
        return [self.filled(word) for word in self.services[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """What the container gets: a variable without a value only where one is set."""
        found: dict[str, str] = {}
        for name, value in self.services[service].get("environment", {}).items():
            if value is not None:
                found[name] = self.filled(str(value))
            elif name in self.variables:
                found[name] = self.variables[name]
        return found

    def filled(self, text: str) -> str:
        return VARIABLE.sub(self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if value := self.variables.get(name, ""):
            return value
        if kind == "?":
            raise ValueError(f"{name}: {rest}")
        return self.filled(rest or "")
