"""What people write: stricter than what processes say to each other, so that a slip is an error and not a default."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, separators of lines, and what turns the direction of the text around it: on a terminal or a page
they would show a name as another one."""


class Written(BaseModel):
    """Fields are refused when unknown (`extra="forbid"`), and `true` is not taken as the number 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_truth(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(value).lower()} is neither a number nor a text")
        return value


def _takes_truth(annotation: Any) -> bool:
    return annotation in (bool, Any) or bool in get_args(annotation)


def check_printable(text: str) -> str:
    """A name that looks like what it is. Raises ValueError that says which character does not."""
    if found := UNPRINTABLE.search(text):
        raise ValueError(f"character {found.start() + 1} (U+{ord(found[0]):04X}) cannot be printed; leave it out")
    return text


Printable = Annotated[str, AfterValidator(check_printable)]
