"""What a config says of a study's own loader or builder: its options, and whose code it is."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from dlnn_search.config.base import Frozen

#: Options are a handful of numbers and words; data belong into the loader.
MAX_OPTIONS_CHARACTERS = 10_000


def _bounded(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    text = json.dumps(options, allow_nan=False)
    if len(text) > MAX_OPTIONS_CHARACTERS:
        raise ValueError(
            f"Expected options of at most {MAX_OPTIONS_CHARACTERS:,} characters in JSON, "
            f"got {len(text):,}. Let them name what the code reads or computes by itself."
        )
    if _holds_null(options):
        # An exported config leaves out what is None.
        raise ValueError("Expected options without None: leave such an option out.")
    return options


def _holds_null(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return value is None


class OwnPart(Frozen):
    """A part of a config that a study's own code makes real.

    A config names the study, never a file: whoever reads an untrusted config brings the code.
    """

    options: Annotated[dict[str, JsonValue], AfterValidator(_bounded)] = Field(default_factory=dict)
    """What the code is called with: plain JSON values."""
    study: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")
    """Whose code; filled in by the study."""
    code: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")
    """A hash of that code: edited code is another config. Filled in by the study."""

    def __hash__(self) -> int:
        # Options are a dictionary, which has no hash of its own.
        return hash(self.model_dump_json())
