"""Real text that ships with Python: the language reference's topics and the standard library's docstrings."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from pydoc_data import topics


def stdlib_text(limit: int = 1_200_000) -> str:
    """English about Python, up to `limit` characters: the same on every machine with the same Python."""
    parts, length = [], 0
    for text in chain(topics.topics.values(), _docstrings()):
        parts.append(text)
        length += len(text) + 2
        if length >= limit:
            break
    return "\n\n".join(parts)[:limit]


def _docstrings() -> Iterator[str]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(stdlib.glob("*.py")) + sorted(stdlib.glob("[a-z]*/*.py")):
        if "site-packages" in file.parts or "test" in file.parts:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # some files of the library are wrong on purpose: lib2to3's tests, for one
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 80:
                    yield text
