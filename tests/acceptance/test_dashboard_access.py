"""Who may do what in the dashboard: asked by raw requests, and in a real browser."""

from __future__ import annotations

import http.client
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from optuna_dashboard import wsgi

from dlnn_search.storage.database import open_database

from .command_line import Place, Running, wait_for
from .test_dashboard import text_of
from .test_pages import window

EDITOR, VIEWER = "the editors' word 1", "the viewers' word 2"
ADDRESS = re.compile(r"http://[\d.]+:\d+/")
BUTTONS = (
    "return [...document.querySelectorAll('button')].filter((one) => one.checkVisibility())"
    ".map((one) => one.ariaLabel || one.textContent.trim())"
)
FITS = "return document.documentElement.scrollWidth <= innerWidth"
WRITING_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO")


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str
    cookies: list[str]


@dataclass
class Visitor:
    """A client that sends exactly what it is told, and keeps the session's cookie."""

    address: str
    cookie: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: str = "", host: str | None = None, **headers: str
    ) -> Answer:
        with closing(http.client.HTTPConnection(self.address, timeout=60)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = {
                "Host": host or self.address,
                "Accept-Encoding": "",
                "Content-Length": str(len(body)),
                **self.headers,
                **{name.replace("_", "-"): value for name, value in headers.items()},
            }
            if self.cookie:
                sent["Cookie"] = self.cookie
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body.encode())
            answer = connection.getresponse()
            text = "" if method == "CONNECT" else answer.read().decode(errors="replace")
            cookies = answer.headers.get_all("Set-Cookie") or []
            return Answer(answer.status, dict(answer.headers), text, cookies)

    def open_page(self) -> str:
        """Open the log-in page; return its form's token."""
        page = self.ask("GET", "/log-in")
        assert page.status == 200
        if page.cookies:
            self.cookie = page.cookies[0].partition(";")[0]
        token = re.search(r'name="csrf_token" value="([^"]+)"', page.body)
        assert token is not None
        return token.group(1)

    def log_in(self, password: str, **fields: str) -> Answer:
        token = self.open_page()
        body = urlencode({"csrf_token": token, "password": password, **fields})
        answer = self.ask("POST", "/log-in", body, Content_Type=FORM)
        if answer.cookies:
            self.cookie = answer.cookies[0].partition(";")[0]
        return answer


FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def work(searched: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return searched.copy_to(tmp_path_factory.mktemp("access") / "work")


@contextmanager
def serving(place: Place, *options: object, **environment: str) -> Iterator[tuple[str, Running]]:
    asked = Place(place.folder, {**place.environment, **environment})
    with asked.begin("dashboard", "--port", 0, *options) as running:
        found = wait_for(
            "its address",
            lambda: running.process.poll() is not None or ADDRESS.search(running.said()),
        )
        assert found is not True, running.said()
        port = urlsplit(found.group()).port
        yield f"127.0.0.1:{port}", running
        assert running.process.poll() is None, running.said()


@pytest.fixture(scope="module")
def address(work: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard on all addresses, with both passwords; it says neither."""
    secret = tmp_path_factory.mktemp("secrets") / "editor"
    secret.write_text(EDITOR + "\n")
    secret.chmod(0o600)
    with serving(
        work,
        "--host",
        "0.0.0.0",
        DLNN_SEARCH_DASHBOARD_PASSWORD_FILE=str(secret),
        DLNN_SEARCH_VIEWER_PASSWORD=VIEWER,
    ) as (found, running):
        yield found
        assert EDITOR not in running.said() and VIEWER not in running.said()
        assert "Warning" not in running.said()


@pytest.fixture(scope="module")
def routes(work: Place) -> list[tuple[str, str]]:
    """Every route that this release of optuna-dashboard has, with numbers put into it."""
    database = open_database(f"sqlite:///{work.database}", create=False, read_only=True)
    try:
        app: Any = wsgi(database.optuna)
    finally:
        database.close()
    found = []
    for route in app.routes:
        path = re.sub(r"<\w+:int>", "1", route.rule)
        path = path.replace("<artifact_id:re:[0-9a-fA-F-]+>", "abc-1").replace("<plot_type>", "edf")
        path = path.replace("<history_id>", "abc").replace("<filename:path>", "bundle.js")
        path = path.replace("<:re:(/.*)?>", "/studies/1")
        assert "<" not in path, f"a new kind of route: {route.rule}"
        found.append((route.method, path))
    assert sum(method != "GET" for method, _ in found) >= 15
    return found


def contents(place: Place) -> list[str]:
    """Return all that Optuna's tables hold: what a write would change."""
    with closing(sqlite3.connect(place.database, timeout=60)) as connection:
        return [line for line in connection.iterdump() if "learning-curves" not in line]


def odd_paths(path: str) -> list[str]:
    """Return other ways to write a path, by which a careless gate is passed."""
    return [
        f"/{path}",
        f"//{path}//",
        f"/log-in/..{path}",
        f"/log-in/%2e%2e{path}",
        f"/log-in{path}",
        f"/log-in/style.css/..{path}",
        f"/log-in/style.css;{path}",
        f"/%2e{path}",
        f"/./{path}",
        path.replace("/api", "/%61pi"),
        path.replace("/api", "/API"),
        path.replace("/", "%2f"),
        path.replace("/", "\\"),
        f"{path}?_method=GET",
        f"{path}%3f/log-in",
        f"{path}#/log-in",
        f"http://127.0.0.1/{path}",
    ]


def test_a_stranger_gets_nothing_but_the_log_in_page(
    address: str, routes: list[tuple[str, str]], work: Place
) -> None:
    before = contents(work)
    stranger = Visitor(address)
    for method, path in routes:
        assert stranger.ask(method, path, "{}").status == 401, (method, path)
        for odd in odd_paths(path):
            answer = stranger.ask(method, odd, "{}")
            assert answer.status in (400, 401, 404, 405), (method, odd)
            assert "study_name" not in answer.body and "Optuna" not in answer.body
    for method in WRITING_METHODS:
        assert stranger.ask(method, "/api/studies", "{}").status in (400, 401, 405, 501), method
    for header in ("X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-For"):
        assert stranger.ask("POST", "/api/studies", "{}", **{header: "/log-in"}).status == 401
    assert stranger.ask("GET", "/log-in/style.css").status == 200
    assert stranger.ask("POST", "/log-out").status == 401
    assert contents(work) == before


def test_a_strangers_window_is_led_to_the_log_in_page_and_back_to_this_server_only(
    address: str,
) -> None:
    window = Visitor(address, headers={"Accept": "text/html,*/*;q=0.8"})
    led = window.ask("GET", "/dashboard/studies/1?a=b")
    assert led.status == 303
    assert led.headers["Location"] == "/log-in?next=%2Fdashboard%2Fstudies%2F1%3Fa%3Db"
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil"):
        back = Visitor(address).log_in(VIEWER, next=elsewhere)
        assert (back.status, back.headers["Location"]) == (303, "/dashboard"), elsewhere
    back = Visitor(address).log_in(VIEWER, next="/dashboard/studies/1?a=b")
    assert back.headers["Location"] == "/dashboard/studies/1?a=b"


@pytest.fixture(scope="module")
def viewer(address: str) -> Visitor:
    visitor = Visitor(address)
    answer = visitor.log_in(VIEWER)
    assert answer.status == 303
    (cookie,) = answer.cookies
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert VIEWER not in cookie
    return visitor


def test_a_viewer_reads_everything_and_changes_nothing(
    viewer: Visitor, routes: list[tuple[str, str]], work: Place
) -> None:
    before = contents(work)
    study = json.loads(viewer.ask("GET", "/api/studies/1").body)
    assert len(study["trials"]) == 4
    for method, path in routes:
        if method == "GET":
            assert viewer.ask(method, path).status not in (401, 403, 500), path
            continue
        assert viewer.ask(method, path, "{}").status == 403, (method, path)
        for odd in odd_paths(path):
            assert viewer.ask(method, odd, "{}").status in (400, 403), (method, odd)
        overridden = viewer.ask("GET", path, "{}", X_HTTP_Method_Override=method)
        assert overridden.status in (302, 400, 404, 405) or path.startswith(
            ("/api/studies", "/incompatible", "/api/artifacts")
        )
    for method in WRITING_METHODS:
        assert viewer.ask(method, "/api/studies", "{}").status in (400, 403, 501), method
    assert contents(work) == before


def test_an_editor_may_change_a_note_and_a_page_of_another_site_may_not_in_an_editors_name(
    address: str, work: Place
) -> None:
    editor = Visitor(address)
    assert editor.log_in(EDITOR).status == 303
    note = json.dumps({"version": 1, "body": "seen"})
    for origin in ("https://evil.example", "null", f"http://{address}.evil.example"):
        refused = editor.ask("PUT", "/api/studies/1/note", note, Origin=origin)
        assert refused.status == 403, origin
    refused = editor.ask("PUT", "/api/studies/1/note", note, Sec_Fetch_Site="cross-site")
    assert refused.status == 403
    json_type = {"Content_Type": "application/json", "Origin": f"http://{address}"}
    assert editor.ask("PUT", "/api/studies/1/note", note, **json_type).status == 204
    assert any('"seen"' in line for line in contents(work))


def test_a_session_ends_with_its_log_out_wherever_its_cookie_went(address: str) -> None:
    visitor = Visitor(address)
    visitor.log_in(VIEWER)
    stolen = Visitor(address, cookie=visitor.cookie)
    assert stolen.ask("GET", "/api/studies").status == 200
    assert visitor.ask("POST", "/log-out").status == 303
    assert stolen.ask("GET", "/api/studies").status == 401
    assert visitor.cookie is not None
    forged = Visitor(address, cookie=visitor.cookie[:-2] + "xx")
    assert forged.ask("GET", "/api/studies").status == 401


def test_a_log_in_needs_its_own_pages_form(address: str) -> None:
    visitor = Visitor(address)
    visitor.open_page()
    body = urlencode({"password": EDITOR})
    assert visitor.ask("POST", "/log-in", body, Content_Type=FORM).status == 400
    body = urlencode({"password": EDITOR, "csrf_token": Visitor(address).open_page()})
    assert visitor.ask("POST", "/log-in", body, Content_Type=FORM).status == 400
    assert visitor.ask("GET", "/api/studies").status == 401


def test_guesses_are_throttled_and_a_proxys_word_on_who_guesses_is_not_taken_unasked(
    work: Place,
) -> None:
    with serving(work, DLNN_SEARCH_VIEWER_PASSWORD=VIEWER) as (address, _):
        codes = [
            Visitor(address, headers={"X-Forwarded-For": f"10.0.0.{n}"}).log_in("wrong").status
            for n in range(12)
        ]
        assert codes == [401] * 10 + [429] * 2
        throttled = Visitor(address).log_in(VIEWER)
        assert throttled.status == 429
        assert throttled.headers["Retry-After"] == "60"


def test_behind_a_proxy_its_word_counts_and_cookies_are_for_https_alone(work: Place) -> None:
    with serving(work, "--behind-proxy", DLNN_SEARCH_VIEWER_PASSWORD=VIEWER) as (address, _):
        for n in range(12):
            visitor = Visitor(address, headers={"X-Forwarded-For": f"10.0.0.{n}"})
            assert visitor.log_in("wrong").status == 401
        over_tls = Visitor(
            address,
            headers={
                "X-Forwarded-Proto": "https",
                "X-Forwarded-For": "10.1.0.1",
                "Referer": f"https://{address}/log-in",
            },
        )
        assert "Secure" in over_tls.log_in(VIEWER).cookies[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.9.8.7", "some-name.example"])
def test_beyond_this_machine_nothing_is_shown_without_a_password(work: Place, host: str) -> None:
    told = work.run("dashboard", "--host", host, "--port", 0)
    assert told.code == 2
    assert "DLNN_SEARCH_DASHBOARD_PASSWORD_FILE" in told.err
    assert "Traceback" not in told.both


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"DLNN_SEARCH_DASHBOARD_PASSWORD": "short1"}, "at least 8"),
        (
            {
                "DLNN_SEARCH_DASHBOARD_PASSWORD": "one for both",
                "DLNN_SEARCH_VIEWER_PASSWORD": "one for both",
            },
            "same password",
        ),
        ({"DLNN_SEARCH_DASHBOARD_PASSWORD_FILE": "nowhere"}, "'nowhere'"),
    ],
    ids=["short", "same", "missing"],
)
def test_a_password_that_protects_nobody_is_refused(
    work: Place, variables: dict[str, str], part: str
) -> None:
    told = work.run("dashboard", "--host", "0.0.0.0", "--port", 0, **variables)
    assert told.code == 2
    assert part in told.err
    assert "short1" not in told.both and "one for both" not in told.both


def test_on_this_machine_it_answers_to_its_own_name_and_to_its_own_pages_only(
    work: Place, routes: list[tuple[str, str]]
) -> None:
    with serving(work) as (address, _):
        port = address.partition(":")[2]
        neighbour = Visitor(address)
        for name in (f"localhost:{port}", "localhost", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert neighbour.ask("GET", "/api/studies", host=name).status == 200, name
        for name in ("evil.example", f"localhost.evil.example:{port}", "evil@localhost", "["):
            status = neighbour.ask("GET", "/api/studies", host=name).status
            assert status in (400, 403) if name == "evil@localhost" else status == 403, name
        for method, path in routes:
            if method != "GET":
                foreign = neighbour.ask(method, path, "{}", Origin="https://evil.example")
                assert foreign.status == 403, (method, path)
        note = json.dumps({"version": 7, "body": "by a neighbour"})
        content = {"Content_Type": "application/json"}
        assert neighbour.ask("PUT", "/api/studies/1/note", note, **content).status in (204, 409)


def test_read_only_holds_for_everybody_and_on_a_file_that_may_only_be_read(
    work: Place, routes: list[tuple[str, str]], tmp_path: Path
) -> None:
    place = work.copy_to(tmp_path / "work")
    place.database.chmod(0o444)
    before = contents(place)
    with serving(place, "--read-only") as (address, running):
        visitor = Visitor(address)
        assert len(json.loads(visitor.ask("GET", "/api/studies/1").body)["trials"]) == 4
        for method, path in routes:
            if method != "GET":
                assert visitor.ask(method, path, "{}").status == 403, (method, path)
        assert "rror" not in running.said()
    assert contents(place) == before


def test_a_browser_logs_in_looks_round_and_logs_out(
    work: Place, browser: Any, picture: Callable[[str], None]
) -> None:
    browser.get_log("browser")  # forgotten: other tests' pages
    # Its own dashboard: the others' attempts count against the limit of theirs.
    with serving(work, DLNN_SEARCH_VIEWER_PASSWORD=VIEWER) as (address, _):
        browser.get(f"http://{address}/dashboard/studies/1")
        wait_for("the log-in page", lambda: browser.find_elements("css selector", "#password"))
        picture("log-in")
        browser.find_element("css selector", "#password").send_keys("not the word")
        browser.find_element("css selector", "button").click()
        wait_for("the refusal", lambda: "not right" in text_of(browser, ".message"))
        picture("log-in-refused")
        browser.find_element("css selector", "#password").send_keys(VIEWER)
        browser.find_element("css selector", "button").click()
        wait_for("the study's page", lambda: "tiny" in text_of(browser))
        assert browser.current_url.endswith("/dashboard/studies/1")
        bar = browser.find_element("css selector", "form[action='/log-out']")
        assert "Viewer: read-only" in bar.text
        wait_for("the curves", lambda: "Learning curves of tiny" in text_of(browser, ".gtitle"))
        picture("viewer")
        browser.get(f"http://{address}/dashboard")
        wait_for("the study's state", lambda: "State: done" in text_of(browser, ".dlnn-state"))
        shown = set(browser.execute_script(BUTTONS))
        assert {"Reload", "Log out"} <= shown
        assert not {"Create", "rename study", "delete study"} & shown
        with window(browser, 400):
            wait_for("the narrow page", lambda: browser.execute_script(FITS))
            browser.get(f"http://{address}/dashboard/studies/1")
            wait_for("the curves", lambda: "Learning curves of tiny" in text_of(browser, ".gtitle"))
            assert browser.execute_script(FITS)
        bar = browser.find_element("css selector", "form[action='/log-out']")
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert all("401" in entry["message"] for entry in severe), severe  # the refusal above
        bar.find_element("css selector", "button").click()
        wait_for("the log-in page", lambda: browser.find_elements("css selector", "#password"))
        browser.get(f"http://{address}/dashboard")
        wait_for("the log-in page", lambda: browser.find_elements("css selector", "#password"))
