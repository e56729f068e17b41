"""The dashboard, in a real browser and through what its pages read."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .command_line import TIMEOUT_SECONDS, Place, wait_for

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/")


@pytest.fixture(scope="module")
def address(searched: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard of a copy of the searched folder answers."""
    place = searched.copy_to(tmp_path_factory.mktemp("dashboard") / "work")
    with place.begin("dashboard", "--port", 0) as dashboard:
        found = wait_for("its address", lambda: ADDRESS.search(dashboard.said()))
        yield found.group().rstrip("/")
        assert dashboard.process.poll() is None, dashboard.said()
        dashboard.interrupt()
        assert dashboard.wait() in (0, 130)
        assert "Traceback" not in dashboard.said()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        return json.load(response)


def study_of(address: str) -> dict[str, Any]:
    """Return what the study's page reads, once the learning curves are in it."""
    (summary,) = get(f"{address}/api/studies")["study_summaries"]
    assert summary["study_name"] == "tiny"
    found: dict[str, Any] = wait_for(
        "the learning curves",
        lambda: (
            (study := get(f"{address}/api/studies/{summary['study_id']}?after=0"))[
                "plotly_graph_objects"
            ]
            and study
        ),
    )
    return found


def test_its_pages_read_trials_notes_and_learning_curves(address: str) -> None:
    study = study_of(address)
    assert [trial["state"] for trial in study["trials"]] == ["Complete"] * 4
    for trial in study["trials"]:
        assert [value["step"] for value in trial["intermediate_values"]] == [1, 2]
        note = trial["note"]["body"]
        assert re.match(
            r"\*\*Complete\*\*: common sense error \d+\.\d\d min at epoch [12] of 2\n", note
        )
        assert "epoch" in note and "\n| 1 | " in note and "\n| 2 | " in note
    (graph,) = study["plotly_graph_objects"]
    figure = json.loads(graph["graph_object"])
    assert figure["layout"]["title"]["text"] == "Learning curves of tiny, validation"
    values = [trial["values"][0] for trial in study["trials"]]
    best = values.index(min(values))
    assert [line["name"] for line in figure["data"]] == [
        f"trial {number}" + ", best" * (number == best) for number in range(4)
    ]


def text_of(browser: Any, css: str = "body") -> str:
    """Return what is read there; nothing while the page is being replaced."""
    from selenium.common.exceptions import StaleElementReferenceException

    try:
        return "\n".join(found.text for found in browser.find_elements("css selector", css))
    except StaleElementReferenceException:
        return ""


def test_a_browser_shows_the_studys_learning_curves(
    address: str, browser: Any, picture: Callable[[str], None]
) -> None:
    study_id = get(f"{address}/api/studies")["study_summaries"][0]["study_id"]
    study_of(address)
    browser.get(f"{address}/dashboard/")
    wait_for("the study's state", lambda: "State: done" in text_of(browser, ".dlnn-state"))
    lines = text_of(browser, ".dlnn-state").split("\n")
    assert lines[0] == "Metric: common sense error (min), lower is better"
    assert re.fullmatch(r"Best: \d+\.\d\d min \(trial [0-3]\)", lines[1])
    assert lines[2] == "Budget: 4 of 4 trials"
    picture("studies")
    browser.get(f"{address}/dashboard/studies/{study_id}")
    wait_for("the curves", lambda: "Learning curves of tiny" in text_of(browser, ".gtitle"))
    figure = next(
        plot
        for plot in browser.find_elements("css selector", ".js-plotly-plot")
        if "Learning curves" in plot.text
    )
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    assert len(figure.find_elements("css selector", ".scatterlayer .trace")) == 4
    picture("learning-curves")
    browser.execute_script("window.scrollTo(0, 0)")
    picture("study")


def test_a_browser_shows_the_trials_with_their_notes(
    address: str, browser: Any, picture: Callable[[str], None]
) -> None:
    study_id = get(f"{address}/api/studies")["study_summaries"][0]["study_id"]
    browser.get(f"{address}/dashboard/studies/{study_id}/trials?numbers=0")
    wait_for("the note's table", lambda: "images/s" in text_of(browser, "table th"))
    cells = text_of(browser, "table td").split("\n")
    n_columns = len(browser.find_elements("css selector", "table th"))
    assert [cells[0], cells[n_columns]] == ["1", "2"]  # epochs
    shown = text_of(browser)
    assert all(f"Trial {number}" in shown for number in range(4))
    assert "learning_rate" in shown
    picture("trial")


def test_a_browser_writes_no_errors_of_the_page(address: str, browser: Any) -> None:
    browser.get_log("browser")  # forgotten: other tests' pages
    browser.get(f"{address}/dashboard/")
    wait_for("the list of studies", lambda: "tiny" in text_of(browser))
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe
