from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .command_line import TIMEOUT_SECONDS, Place

WIDTH, HEIGHT = 1400, 1000
#: A browser that talks to nobody but the dashboard.
CHROMIUM_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    f"--window-size={WIDTH},{HEIGHT}",
)


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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("needs chromium and chromedriver, to look at the pages as a user does")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in CHROMIUM_OPTIONS:
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    service = webdriver.ChromeService(executable_path=driver)  # named, so nothing is downloaded
    chrome = webdriver.Chrome(options=options, service=service)
    chrome.set_page_load_timeout(TIMEOUT_SECONDS)
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture
def picture(browser: Any, tmp_path: Path) -> Callable[[str], None]:
    """Take a screenshot, kept where DLNN_SEARCH_SCREENSHOTS says."""
    folder = Path(os.environ.get("DLNN_SEARCH_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        path = folder / f"dashboard-{name}.png"
        browser.save_screenshot(str(path))
        assert path.stat().st_size > 10_000

    return take
