"""Every page in a real browser, in a wide window and in that of a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.test_pages import candidate, narrowed, searched

from dlnn_search.config import FashionMnist
from dlnn_search.report.evaluation import confirmation_figure, draw_confusion
from dlnn_search.report.figures import (
    REGIONS_NOTE,
    comparison_figures,
    region_figures,
    study_figures,
    sweep_page,
)
from dlnn_search.report.pages import LIBRARY, Picture, write_pages
from dlnn_search.results.comparison import Progress
from dlnn_search.results.confirmation import Confirmation
from dlnn_search.storage.database import open_database
from dlnn_search.training.rate_range import Sweep

from .command_line import wait_for

WIDTHS = (1400, 400)
#: How many figures each page has.
N_DRAWN = {
    "plots": 2 + 1 + 1 + 15 + 6,
    "regions": 15,
    "confusion": 1,
    "compare": 2,
    "confirmation": 1,
    "lr-range": 1,
    "folder/history": 1,
    "folder/learning-curves": 1,
    "folder/importance": 1,
    "folder/parallel-coordinates": 1,
    "folder/slices": 15,
    "folder/contours": 6,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    with open_database(f"sqlite:///{folder / 'dlnn.db'}", create=True) as database:
        study = searched(database)
        pictures = study_figures(database, study)
        write_pages(folder / "plots.html", study.name, pictures)
        write_pages(folder / "folder", study.name, pictures)
        regions = Picture("Regions", region_figures(narrowed(database)), REGIONS_NOTE)
    write_pages(folder / "regions.html", "Regions", [regions])
    labels = np.arange(10, dtype=np.uint8)
    draw_confusion(labels, labels[::-1].copy(), FashionMnist(), folder / "confusion.html")
    found = [Progress(study, {}, (1.0, 2.0, 9.0), (None, 0.5, 0.9))] * 2
    write_pages(folder / "compare.html", "Comparison", comparison_figures(found))
    confirmation = Confirmation("accuracy", "maximize", (candidate(0.9, 0.99, 1.0),))
    confirmed = Picture("Confirmation", confirmation_figure(study, confirmation))
    write_pages(folder / "confirmation.html", study.name, [confirmed])
    losses = [2.0 - 0.01 * n for n in range(150)] + [0.5 + 0.05 * n for n in range(50)]
    sweep = Sweep.of(1e-5, 1.0, 200, losses)
    (folder / "lr-range.html").write_text(sweep_page(sweep, "some-study", "the best trial, 3,"))
    return folder


@contextmanager
def window(browser: Any, width: int) -> Iterator[None]:
    """Let the browser's window be as wide, in CSS pixels, as no headless one could be made."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def count(browser: Any, css: str) -> int:
    return len(browser.find_elements("css selector", css))


def overflows(browser: Any) -> bool:
    found: bool = browser.execute_script(
        "return document.documentElement.scrollWidth > innerWidth"
        " || [...document.querySelectorAll('.picture')].some((one) =>"
        " one.querySelector('.main-svg').getBoundingClientRect().right"
        " > one.getBoundingClientRect().right + 1)"
    )
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", N_DRAWN)
def test_a_page_draws_all_its_pictures_and_fits_its_window(
    pages: Path, browser: Any, picture: Callable[[str], None], page: str, width: int
) -> None:
    browser.get_log("browser")  # forgotten: other tests' pages
    with window(browser, width):
        browser.get((pages / f"{page}.html").as_uri())
        wait_for("the pictures", lambda: count(browser, "[data-drawn]") == N_DRAWN[page])
        assert count(browser, ".picture") == N_DRAWN[page]
        assert count(browser, ".picture .main-svg") >= N_DRAWN[page]
        assert not overflows(browser)
        picture(f"{page.replace('/', '-')}-{width}")
        assert "trace 0" not in browser.find_element("css selector", "body").text
        assert count(browser, ".modebar-btn[data-title*='hare'], [data-title*='loud']") == 0
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe


def test_a_page_follows_the_width_of_its_window(pages: Path, browser: Any) -> None:
    browser.get_log("browser")
    with window(browser, WIDTHS[0]):
        browser.get((pages / "plots.html").as_uri())
        wait_for("it", lambda: count(browser, "[data-drawn]") == N_DRAWN["plots"])
        for width in (400, 700, 1400, 520):
            with window(browser, width):
                wait_for(f"{width} pixels", lambda: not overflows(browser))
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def before_each_page(browser: Any, script: str) -> Iterator[None]:
    command = "Page.addScriptToEvaluateOnNewDocument"
    added = browser.execute_cdp_cmd(command, {"source": script})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def words_in_place_of_pictures(browser: Any) -> set[str]:
    return {found.text for found in browser.find_elements("css selector", ".picture p")}


def test_a_browser_that_cannot_unpack_the_library_is_told_what_to_do(
    pages: Path, browser: Any
) -> None:
    with before_each_page(browser, "delete window.DecompressionStream"):
        browser.get((pages / "regions.html").as_uri())
        wait_for("the words", lambda: words_in_place_of_pictures(browser))
        (words,) = words_in_place_of_pictures(browser)
    assert words.startswith("This browser cannot draw the pictures. Open the page with a current")
    assert "Regions" in browser.find_element("css selector", "h1").text


def test_a_page_that_was_taken_from_its_folder_says_what_it_misses(
    pages: Path, browser: Any, tmp_path: Path
) -> None:
    alone = tmp_path / "slices.html"
    alone.write_bytes((pages / "folder" / "slices.html").read_bytes())
    browser.get(alone.as_uri())
    wait_for("the words", lambda: words_in_place_of_pictures(browser))
    (words,) = words_in_place_of_pictures(browser)
    assert f"'{LIBRARY}' must lie in the folder of this page" in words


def test_without_scripts_a_page_says_that_it_needs_them(pages: Path, browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((pages / "compare.html").as_uri())
        shown = browser.find_element("css selector", "body").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert shown.count("The pictures need JavaScript.") == 2
    assert "Best so far, by trials" in shown
