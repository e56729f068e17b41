"""Secrets: read from a file or the environment, and kept out of everything that is shown."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from dlnn_search.errors import UsageError

#: A password that is longer is a mistaken file.
MAX_SECRET_BYTES = 4_096
#: Where compose mounts secrets: whoever may look there is in the container already.
CONTAINER_SECRETS = Path("/run/secrets")
#: Shorter ones are replaced only where they stand alone: 'a' would black out every word.
MIN_LENGTH_ANYWHERE = 6
STORAGE_PASSWORD = "DLNN_SEARCH_STORAGE_PASSWORD"

_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^/@:]*):(?P<password>.+)@(?P<rest>[^@]*)"
)
_IN_QUERY = re.compile(r"(?<=[?&])password=(?P<password>[^&]+)&?")
_known: set[str] = set()


def read_secret(name: str) -> str | None:
    """Return the secret of the environment variable NAME, or of the file that NAME_FILE names.

    One line end at the file's end is no part of it: editors and `echo` put it there.

    Raises:
        UsageError: If both are set, or the file cannot be read or holds no secret.
    """
    file = os.environ.get(f"{name}_FILE")
    value = os.environ.get(name)
    if file and value:
        raise UsageError(f"Both {name} and {name}_FILE are set: expected one of them.")
    if file:
        value = _read(Path(file), f"{name}_FILE")
    if not value:
        return None
    remember(value)
    return value


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_SECRET_BYTES + 1)
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is no text").lower()
        raise UsageError(
            f"Cannot read the secret in '{path}' that {name} names: {reason}. "
            "Expected a file with one line that this user may read."
        ) from None
    if not text or len(raw) > MAX_SECRET_BYTES or "\n" in text or "\0" in text:
        raise UsageError(
            f"Expected one line of at most {MAX_SECRET_BYTES} bytes in '{path}' that {name} names, "
            f"got {len(text.splitlines())} lines."
        )
    if _is_open_to_others(path):
        print(
            f"Warning: other users of this machine can read the secret in '{path}'. "
            f"Keep it to yourself: chmod 600 '{path}'",
            file=sys.stderr,
        )
    return text


def _is_open_to_others(path: Path) -> bool:
    """Whether the file and every folder above it let other users through."""
    whole = path.resolve()
    if whole.is_relative_to(CONTAINER_SECRETS) or not whole.stat().st_mode & stat.S_IROTH:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in whole.parents)


def remember(secret: str | None) -> None:
    """Let `hidden` know a secret, as it is and as it stands in a URL."""
    if secret:
        _known.update({secret, quote(secret, safe=""), quote(secret)})


def hidden(text: str) -> str:
    """Return the text with every known secret replaced by ***."""
    for secret in sorted(_known, key=len, reverse=True):
        if len(secret) >= MIN_LENGTH_ANYWHERE:
            text = text.replace(secret, "***")
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


class _Hiding(logging.Formatter):
    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return hidden(self._inner.format(record))


def hide_in_logs() -> None:
    """Keep known secrets out of what the root logger writes, tracebacks included."""
    for handler in logging.root.handlers:
        if not isinstance(handler.formatter, _Hiding):
            handler.setFormatter(_Hiding(handler.formatter or logging.Formatter()))


def taken_off_command_line(
    arguments: Sequence[str], environment: MutableMapping[str, str]
) -> list[str] | None:
    """Move the database's password from the command line into the environment.

    Every user of a machine sees the command lines of all processes (`ps`), but only a process's
    own user its environment.

    Args:
        arguments: After the program's name.
        environment: Gets the password.

    Returns:
        The arguments without it; None if none of them holds a password.
    """
    cleaned, found = list(arguments), False
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if equals and option == "--storage":
            address, place = value, "--storage="
        elif number and arguments[number - 1] == "--storage":
            address, place = argument, ""
        else:
            continue
        password = None
        if match := _ADDRESS.fullmatch(address):
            password = match["password"]
            address = f"{match['scheme']}{match['user']}@{match['rest']}"
        if match := _IN_QUERY.search(address):
            password = match["password"].replace("+", " ")  # as forms write it
            address = _IN_QUERY.sub("", address).rstrip("?&")
        if password is None:
            continue
        environment[STORAGE_PASSWORD] = unquote(password)
        environment.pop(f"{STORAGE_PASSWORD}_FILE", None)
        cleaned[number] = place + address
        found = True
    return cleaned if found else None
