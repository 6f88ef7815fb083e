"""What docker-compose.yml says of our services, so that tests run them as it does, without containers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class ComposeFile:
    """The services as they are with `variables` set over those of .env.example."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        example = {name: value or "" for name, value in dotenv_values(ROOT / ".env.example").items()}
        self.variables = {**example, **variables}
        self._services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    def command(self, service: str) -> list[str]:
        return [self._filled(word) for word in self._services[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """What the container gets: a variable without a value only where one is set."""
        found: dict[str, str] = {}
        for name, value in self._services[service]["environment"].items():
            if value is not None:
                found[name] = self._filled(str(value))
            elif name in self.variables:
                found[name] = self.variables[name]
        return found

    def _filled(self, text: str) -> str:
        return VARIABLE.sub(self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if value := self.variables.get(name, ""):
            return value
        if kind == "?":
            raise ValueError(f"{name}: {rest}")
        return rest or ""
