"""A study is renamed and deleted, by the command line, the dashboard, and behind our back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from .command_line import SLOW, Place, wait_for
from .test_dashboard import text_of
from .test_dashboard_access import VIEWER, Visitor

ADDRESS = re.compile(r"http://(127\.0\.0\.1:\d+)/")
JSON = {"Content_Type": "application/json"}


@pytest.fixture
def work(searched: Place, tmp_path: Path) -> Place:
    """A folder with the study `tiny`, of four finished trials."""
    return searched.copy_to(tmp_path / "work")


def delete_behind_our_back(place: Place) -> None:
    """Delete Optuna's half, as plain optuna-dashboard does."""
    optuna.delete_study(study_name="tiny", storage=RDBStorage(f"sqlite:///{place.database}"))


def test_a_renamed_study_goes_on_under_its_new_name(work: Place) -> None:
    work.succeed("start", "tiny.py")  # all is done; from this folder on
    asked = work.run("rename", "tiny", "better")
    assert asked.code == 2
    assert "Rename tiny to better" in asked.err and "--yes" in asked.err
    assert "Renamed: better" in work.succeed("rename", "tiny", "better", "--yes")
    assert "4 of 4 trials" in work.succeed("status", "better")
    assert work.succeed("trials", "better").count("learning_rate=") == 4
    work.succeed("export", "better", "-o", "best.json")
    assert json.loads((work.folder / "best.json").read_text())["origin"]["study"] == "better"
    work.succeed("start", "better", "--trials", 5)
    assert "5 of 5 trials" in work.succeed("status", "better")
    assert [path.name for path in (work.data / "checkpoints").iterdir()] == ["tiny"]
    for command in (("status", "tiny"), ("start", "tiny.py"), ("worker", "tiny.py")):
        told = work.run(*command)
        assert told.code == 2, told.both
        assert "The study 'tiny' was renamed to 'better'" in told.err
    (work.folder / "tiny.py").rename(work.folder / "moved.py")
    lost = work.run("start", "better")
    assert lost.code == 2
    assert "was started from" in lost.err and "--study FILE.py" in lost.err
    work.succeed("start", "better", "--study", "moved.py", "--trials", 6)
    assert work.rows("SELECT count(*), count(DISTINCT trial_id) FROM dlnn_slots") == [(6, 6)]


def test_a_deleted_study_is_gone_with_its_files_and_begins_anew(work: Place) -> None:
    asked = work.run("delete", "tiny")
    assert asked.code == 2
    assert "4 finished trials" in asked.err and "--yes" in asked.err
    assert (work.data / "checkpoints" / "tiny").is_dir()
    assert "Deleted: tiny" in work.succeed("delete", "tiny", "--yes")
    assert not (work.data / "checkpoints" / "tiny").exists()
    assert "no study 'tiny'" in work.run("status", "tiny").err
    assert work.rows("SELECT count(*) FROM trials") == [(0,)]
    work.succeed("start", "tiny.py", "--trials", 1)
    assert work.succeed("trials", "tiny").count("learning_rate=") == 1


def test_a_running_study_is_not_changed_and_goes_on_from_its_checkpoint_when_renamed(
    place: Place,
) -> None:
    with place.begin("start", place.write_study(**SLOW), "--trials", 1) as search:
        wait_for("an epoch", lambda: _epochs(place))
        for command in (("rename", "tiny", "better"), ("delete", "tiny")):
            refused = place.run(*command, "--yes")
            assert refused.code == 2, refused.both
            assert "'tiny' is being searched by 1 worker" in refused.err
            assert "dlnn-search stop tiny --now" in refused.err
        search.interrupt()
        search.wait()
    before = _epochs(place)
    place.succeed("rename", "tiny", "better", "--yes")
    place.succeed("start", "better")
    after = _epochs(place)
    assert len(after) == SLOW["epochs"]
    assert after[: len(before)] == before  # not trained again


def _epochs(place: Place) -> list[tuple[Any, ...]]:
    return place.rows("SELECT epoch, seconds FROM dlnn_curves ORDER BY epoch")


def test_every_command_says_that_another_program_deleted_a_study(work: Place) -> None:
    delete_behind_our_back(work)
    for command in (
        ("trials", "tiny"),
        ("best", "tiny"),
        ("start", "tiny.py"),
        ("worker", "tiny.py"),
        ("confirm", "tiny"),
        ("importance", "tiny"),
        ("plots", "tiny", "-o", "page.html"),
        ("storage", "backup", "--all", "-o", "backup.zip"),
    ):
        told = work.run(*command)
        assert told.code == 3, (command, told.both)
        assert told.err.count("another program deleted or renamed") == 1, (command, told.err)
        assert "Traceback" not in told.both
    assert not (work.folder / "backup.zip").exists()
    for shown in (("status",), ("status", "tiny"), ("storage", "info")):
        assert "dlnn-search delete tiny" in work.succeed(*shown).replace("\n", " "), shown
    assert "dlnn-search delete tiny" in work.run("doctor").out
    exported = work.run("export", "tiny", "-o", "best.json")  # what was found is not lost
    assert exported.code == 0
    assert "Warning: The study 'tiny'" in exported.err
    work.succeed("delete", "tiny", "--yes")
    work.succeed("start", "tiny.py", "--trials", 1)


def test_workers_of_a_study_that_another_program_deletes_end_with_a_sentence(
    place: Place,
) -> None:
    with place.begin("start", place.write_study(**SLOW), "--trials", 2) as search:
        wait_for("an epoch", lambda: _epochs(place))
        delete_behind_our_back(place)
        assert search.wait() == 3
        assert "another program deleted or renamed" in search.said()
        assert "A new worker starts" not in search.said()
        assert "Traceback" not in search.said()


@contextmanager
def dashboard(place: Place, *options: object) -> Iterator[str]:
    with place.begin("dashboard", "--port", 0, *options) as running:
        found = wait_for("its address", lambda: ADDRESS.search(running.said()))
        yield found.group(1)
        assert running.process.poll() is None, running.said()


def test_the_dashboard_renames_and_deletes_both_halves(work: Place) -> None:
    with dashboard(work) as address:
        visitor = Visitor(address)
        held = "UPDATE dlnn_slots SET state = 'held', worker = 'w', lease_ends_at = 1e12"
        work.execute(f"{held} WHERE number = 0")
        body = json.dumps({"study_name": "better"})
        for method, path in (
            ("POST", "/api/studies/1/rename"),
            ("DELETE", "/api/studies/1"),
            ("DELETE", "/api/studies/1/"),
        ):
            refused = visitor.ask(method, path, body, **JSON)
            assert refused.status == 409, path
            assert "is being searched" in json.loads(refused.body)["reason"]
        work.execute("UPDATE dlnn_slots SET state = 'done', lease_ends_at = NULL WHERE number = 0")
        for bad in ('{"study_name": "Not a name"}', "[]", ""):
            refused = visitor.ask("POST", "/api/studies/1/rename", bad, **JSON)
            assert refused.status == 409
            assert "Expected a name" in json.loads(refused.body)["reason"]
        renamed = visitor.ask("POST", "/api/studies/1/rename", body, **JSON)
        assert renamed.status == 201
        assert json.loads(renamed.body)["study_name"] == "better"
        assert "4 of 4 trials" in work.succeed("status", "better")
        assert work.succeed("trials", "better").count("learning_rate=") == 4
        (shown,) = json.loads(visitor.ask("GET", "/api/studies").body)["study_summaries"]
        assert (shown["study_id"], shown["study_name"]) == (1, "better")
        assert visitor.ask("GET", "/api/studies/1/plot/edf").status == 200
        assert visitor.ask("DELETE", "/api/studies/1", "{}", **JSON).status == 204
        assert json.loads(visitor.ask("GET", "/api/studies").body)["study_summaries"] == []
        assert work.rows("SELECT count(*) FROM dlnn_slots") == [(0,)]


BUTTONS = (
    '[aria-label="rename study"]',
    '[aria-label="delete study"]',
    'button [data-testid="AddBoxIcon"]',
)
NOTES_BUTTON = 'button [data-testid="EditIcon"]'


def visible(browser: Any, css: str) -> bool:
    found = browser.find_elements("css selector", css)
    assert found, css  # a new release of optuna-dashboard may call it otherwise
    return any(each.is_displayed() for each in found)


@pytest.mark.parametrize("who", ["editor", "viewer", "read-only"])
def test_a_browser_shows_viewers_no_buttons_that_they_may_not_use(
    work: Place, browser: Any, picture: Callable[[str], None], who: str
) -> None:
    password = {"DLNN_SEARCH_VIEWER_PASSWORD": VIEWER} if who == "viewer" else {}
    work = Place(work.folder, {**work.environment, **password})
    with dashboard(work, *(["--read-only"] if who == "read-only" else [])) as address:
        browser.delete_all_cookies()
        browser.get(f"http://{address}/dashboard/")
        if who == "viewer":
            browser.find_element("css selector", "[name=password]").send_keys(VIEWER + "\n")
        wait_for("the list of studies", lambda: "tiny" in text_of(browser))
        picture(f"studies-of-{who}")
        for css in BUTTONS:
            assert visible(browser, css) == (who == "editor"), css
        browser.get(f"http://{address}/dashboard/studies/1/trials?numbers=0")
        wait_for("the note", lambda: "images/s" in text_of(browser, "table th"))
        picture(f"trial-of-{who}")
        assert visible(browser, NOTES_BUTTON) == (who == "editor")


def test_a_browser_says_why_a_running_study_is_not_deleted(work: Place, browser: Any) -> None:
    work.execute("UPDATE dlnn_slots SET state = 'held', worker = 'w', lease_ends_at = 1e12")
    with dashboard(work) as address:
        browser.get(f"http://{address}/dashboard/")
        wait_for("the list of studies", lambda: "tiny" in text_of(browser))
        browser.find_element("css selector", BUTTONS[1]).click()
        yes = wait_for(
            "the question",
            lambda: [
                each
                for each in browser.find_elements("css selector", "[role=dialog] button")
                if each.text.upper() in ("YES", "DELETE")
            ],
        )
        yes[0].click()
        alert = wait_for("the reason", lambda: _alert(browser))
        assert "'tiny' is being searched" in alert


def _alert(browser: Any) -> str | None:
    exceptions = pytest.importorskip("selenium.common.exceptions")
    try:
        alert = browser.switch_to.alert
        text = str(alert.text)
        alert.accept()
    except exceptions.NoAlertPresentException:
        return None
    return text
