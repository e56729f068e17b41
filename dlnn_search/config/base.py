"""What every part of a config has in common: frozen, and strict about its fields."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

#: Fields that say which of several classes a value is: never left out.
_DISCRIMINATORS = ("name", "kind")


class Frozen(BaseModel):
    """A value: compared by content, never changed, refusing what it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def meaning(self) -> dict[str, Any]:
        """Return what is not default, as plain data.

        It stays the same when a later version adds a field whose default changes nothing.
        """
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name in _DISCRIMINATORS or getattr(self, name) != field.default
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.meaning()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
