"""The databases behind the dashboard: one that editors change, one that viewers only read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dlnn_search.storage.database import Database, database_url, open_database

if TYPE_CHECKING:
    from dlnn_search.dashboard import Serving

VIEWER_STORAGE = "DLNN_SEARCH_VIEWER_STORAGE"
VIEWER_STORAGE_PASSWORD = "DLNN_SEARCH_VIEWER_STORAGE_PASSWORD"


@contextmanager
def open_sides(storage: str | None, serving: Serving) -> Iterator[tuple[Database | None, Database]]:
    """Open the database for editors, if there may be any, and for viewers.

    Viewers read through a role of their own where DLNN_SEARCH_VIEWER_STORAGE names one. An
    address on the command line is for both: the environment's may be of another database.
    """
    url = database_url(storage)
    viewer_url, given = url, os.environ.get(VIEWER_STORAGE)
    if storage is None and given:
        viewer_url = database_url(given, VIEWER_STORAGE_PASSWORD)
    with ExitStack() as opened:
        editor = None
        if not serving.read_only:
            editor = opened.enter_context(open_database(url, create=False))
        if editor is not None and serving.passwords is None:
            viewer = editor  # everybody may do everything
        else:
            viewer = opened.enter_context(open_database(viewer_url, create=False, read_only=True))
        yield editor, viewer
