"""Which databases this user has searched in: their addresses, without passwords, in one file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import platformdirs
from filelock import FileLock
from sqlalchemy.exc import ArgumentError

from dlnn_search.files import written_whole
from dlnn_search.storage.database import sqlite
from dlnn_search.storage.database.outages import without_secrets

#: The latest ones are kept.
MAX_KNOWN = 50
#: Another process writes the list for milliseconds; where a lock cannot be had it stays as it is.
LOCK_SECONDS = 1.0


def list_file() -> Path:
    """Return where the list is: in the user's folder for state, which `$XDG_STATE_HOME` names."""
    return platformdirs.user_state_path("dlnn-search", appauthor=False) / "databases.json"


def remember_database(url: str) -> None:
    """Put a database first in the list; where that cannot be written nothing happens.

    Args:
        url: As `database_url` returns it; its secrets are left out.
    """
    path, address = list_file(), without_secrets(url)
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS, mode=0o600):
            known = known_databases()
            if known[:1] == [address]:
                return
            others = [each for each in known if each != address]
            with written_whole(path) as partial:
                text = json.dumps([address, *others][:MAX_KNOWN], indent=2)
                # For the user alone, from the first byte on.
                handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(text + "\n")


def known_databases(but: str | None = None) -> list[str]:
    """Return the addresses in the list, the latest first; files that are gone are left out.

    Args:
        but: Leave out this database, too.
    """
    try:
        listed = json.loads(list_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    left_out = None if but is None else without_secrets(but)
    return [
        address
        for address in (listed if isinstance(listed, list) else ())
        if isinstance(address, str) and address != left_out and _may_be_there(address)
    ]


def _may_be_there(address: str) -> bool:
    try:
        file = sqlite.file_of(address)
        return file is None or file.is_file()
    except (OSError, ValueError, ArgumentError):  # what somebody typed into the list
        return False
