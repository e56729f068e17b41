"""Which files folder a checkpoint lies in: machines that share one see the same place."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlnn_search.errors import StorageError

FILE = "place"


def place_of(folder: Path) -> str:
    """Return the folder's own name, made at first use: 32 hexadecimal digits.

    A path says nothing across machines; a file inside the folder is shared exactly where the
    folder is.

    Raises:
        StorageError: If the folder cannot be read or written.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = folder / f".{FILE}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
            partial.write_text(uuid.uuid4().hex, encoding="ascii")
            try:
                os.link(partial, path)  # the first of several writers wins
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        name = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"Cannot use the folder '{folder}': {error}.") from error
    if len(name) != 32 or not all(letter in "0123456789abcdef" for letter in name):
        raise StorageError(
            f"Expected 32 hexadecimal digits in '{path}', got something else. Remove that file: "
            "a new one is made, and trials that were begun here start over."
        )
    return name


#: In a stored definition: what the study was called before it was renamed, the first name first.
EARLIER_NAMES = "earlier_names"


def lasting_name(name: str, definition: Mapping[str, Any]) -> str:
    """Return a study's first name: its folders keep it when the study is renamed."""
    return str((definition.get(EARLIER_NAMES) or [name])[0])
