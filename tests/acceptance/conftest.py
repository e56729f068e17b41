from __future__ import annotations

import os
from pathlib import Path

import pytest

from .command_line import Place


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment, with data sets that are prepared once for all tests."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DLNN_SEARCH", "COLUMNS", "LINES", "PYTEST"))
    }
    return {
        **inherited,
        "DLNN_SEARCH_CACHE": str(tmp_path_factory.mktemp("cache")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def place(tmp_path: Path, environment: dict[str, str]) -> Place:
    """An empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Place(folder, environment)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Place:
    """A folder in which a search of four trials has ended: to read, not to change."""
    place = Place(tmp_path_factory.mktemp("searched"), environment)
    place.succeed("start", place.write_study(), "--workers", 2, "--trials", 4)
    return place
