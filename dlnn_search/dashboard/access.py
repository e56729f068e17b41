"""Who may do what in the dashboard: the gate before optuna-dashboard, which has none of its own.

Flask routes, signs the session's cookie and draws the log-in page, Flask-WTF guards its form,
`limits` counts the attempts, Werkzeug compares passwords. All requests but the log-in's own pass
`_guard`, which alone hands them on: what it does not know it refuses.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode, urlsplit

import limits
from flask import Flask, Request, Response, redirect, render_template_string, request, session
from flask.sessions import SecureCookieSessionInterface
from flask_wtf.csrf import CSRFError, CSRFProtect
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response as WerkzeugResponse

from dlnn_search.errors import UsageError
from dlnn_search.secret import read_secret

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

Role = Literal["viewer", "editor"]

EDITOR_PASSWORD = "DLNN_SEARCH_DASHBOARD_PASSWORD"
VIEWER_PASSWORD = "DLNN_SEARCH_VIEWER_PASSWORD"
MIN_PASSWORD_LENGTH = 8
SESSION_SECONDS = 12 * 3_600
MAX_SESSIONS = 10_000
MAX_LOG_IN_BYTES = 16_384
MAX_PATH_LENGTH = 2_048
#: By one address, and by all together: a guess a second needs years even for a poor password.
ATTEMPTS = limits.parse("10/minute")
ATTEMPTS_OF_ALL = limits.parse("100/minute")
READING_METHODS = frozenset({"GET", "HEAD"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
#: Styled in place: optuna-dashboard's own policy allows that, and no other style sheets.
_BAR = """
<form method="post" action="/log-out" style="position: fixed; right: 20px; top: 12px;
  z-index: 2000; display: flex; align-items: center; gap: 12px; margin: 0;
  padding: 7px 8px 7px 16px; border-radius: 20px; background: #13293d; color: #fff;
  font: 500 13px/1 Roboto, system-ui, sans-serif; box-shadow: 0 2px 8px rgb(0 0 0 / 30%)">
  <span>ROLE</span>
  <button style="border: 0; border-radius: 14px; padding: 7px 14px; background: #2f86b5;
    color: #fff; font: inherit; cursor: pointer">Log out</button>
</form>
"""
#: What optuna-dashboard changes something with, all of which is refused to viewers: to rename and
#: delete a study; and by their icons, to create one, to write a note, to fail a trial.
_VIEWERS_STYLE = """
<style>
[aria-label="rename study"], [aria-label="delete study"],
button:has([data-testid="AddBoxIcon"]), button:has([data-testid="EditIcon"]),
button:has([data-testid="StopCircleIcon"]) { display: none !important }
</style>
"""
#: optuna-dashboard is made for wide windows: in a narrow one its boxes stand in one column,
#: and what is still too wide for its box is scrolled in there.
_NARROW_STYLE = """
<style>
@media (max-width: 800px) {
  main { min-width: 0 }
  .MuiGrid-root[class*="grid-xs"] { max-width: 100% !important; flex-basis: 100% !important }
  .MuiGrid-container { flex-wrap: wrap !important }
  .MuiCard-root { width: auto !important; max-width: calc(100vw - 92px) }
  .MuiCardContent-root { overflow-x: auto }
}
</style>
"""
#: Where an editor's page finds what says why a change was refused.
REFUSED_SCRIPT = "/refused.js"
#: Where every page finds what fills its list of studies.
STUDIES_SCRIPT = "/studies.js"
_LOG_IN_POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Sides:
    """optuna-dashboard as viewers and as editors get it; no editor: all are viewers."""

    viewer: WSGIApplication
    editor: WSGIApplication | None


@dataclass(frozen=True, repr=False)
class Passwords:
    """What visitors log in with.

    Attributes:
        hashes: By role; at least one. Kept hashed, so that no dump of memory shows them.
    """

    hashes: dict[Role, str]

    @classmethod
    def from_environment(cls) -> Passwords | None:
        """Read the passwords of both roles; None if neither is set.

        Raises:
            UsageError: If one is too short, or both are the same.
        """
        found: dict[Role, str] = {}
        given: dict[Role, str] = {"editor": EDITOR_PASSWORD, "viewer": VIEWER_PASSWORD}
        for role, name in given.items():
            password = read_secret(name)
            if password is None:
                continue
            if len(password) < MIN_PASSWORD_LENGTH:
                raise UsageError(
                    f"The password in {name} has {len(password)} characters: expected at least "
                    f"{MIN_PASSWORD_LENGTH}. Make one: openssl rand -base64 18"
                )
            found[role] = password
        if len(set(found.values())) < len(found):
            raise UsageError(
                f"{EDITOR_PASSWORD} and {VIEWER_PASSWORD} hold the same password: expected two "
                "different ones. The password tells viewers from editors."
            )
        if not found:
            return None
        return cls({role: generate_password_hash(password) for role, password in found.items()})

    def role_of(self, password: str) -> Role | None:
        """Return whose password it is; every hash is compared, in constant time."""
        matching = [r for r, known in self.hashes.items() if check_password_hash(known, password)]
        return matching[0] if matching else None


@dataclass
class _Sessions:
    """Who is logged in: kept here, so that a log-out ends a session wherever its cookie went."""

    _known: dict[str, tuple[Role, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, role: Role) -> str:
        token, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._known = {key: kept for key, kept in self._known.items() if kept[1] > now}
            while len(self._known) >= MAX_SESSIONS:
                del self._known[next(iter(self._known))]
            self._known[token] = (role, now + SESSION_SECONDS)
        return token

    def role(self, token: object) -> Role | None:
        with self._lock:
            role, ends_at = self._known.get(str(token), (None, 0.0))
        return role if time.monotonic() < ends_at else None

    def end(self, token: object) -> None:
        with self._lock:
            self._known.pop(str(token), None)


class _Cookies(SecureCookieSessionInterface):
    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure


def gate(
    sides: Sides,
    passwords: Passwords | None,
    hosts: Collection[str] | None,
    *,
    behind_proxy: bool = False,
) -> WSGIApplication:
    """Return the application that asks who comes before it hands a request on.

    Args:
        sides: What is behind the gate.
        passwords: None: everybody is let in, as editor where there is such a side.
        hosts: Names by which the server may be called; None: any. A page elsewhere can let its
            own name point to this machine (DNS rebinding), and then counts as of one origin.
        behind_proxy: Trust `X-Forwarded-For` and `X-Forwarded-Proto` of the one proxy before.
    """
    app = Flask(__name__, static_folder=None)
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),
        SESSION_COOKIE_NAME="dlnn-search",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=SESSION_SECONDS,
        WTF_CSRF_CHECK_DEFAULT=False,  # of the log-in's forms alone
    )
    app.session_interface = _Cookies()
    app.url_map.merge_slashes = False
    forms = CSRFProtect(app)
    sessions = _Sessions()

    @app.before_request
    def _guard() -> WerkzeugResponse | None:
        refused = _refuse_strangers(request, hosts)
        if refused is not None:
            return refused
        role: Role | None = "editor"
        if passwords is not None:
            if request.endpoint in ("log_in", "style"):
                return None
            role = sessions.role(session.get("token"))
        if role is None:
            return _to_log_in(request)
        if request.endpoint == "log_out":
            return None
        side = sides.editor if role == "editor" and sides.editor is not None else None
        if side is None and request.method not in READING_METHODS:
            return _told(403, "You may look here, but change nothing (read-only).")
        answer = WerkzeugResponse.from_app(side or sides.viewer, request.environ)
        if answer.mimetype == "text/html":
            _add_to_page(answer, is_viewer=side is None, has_log_in=passwords is not None)
        return answer

    @app.after_request
    def _harden(answer: Response) -> Response:
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        if not request.path.startswith("/static/"):
            answer.headers["Cache-Control"] = "no-store"
        return answer

    if passwords is not None:
        _add_log_in(app, forms, sessions, passwords)
    application: WSGIApplication = app.wsgi_app
    return ProxyFix(application, x_for=1, x_proto=1) if behind_proxy else application


def _add_log_in(app: Flask, forms: CSRFProtect, sessions: _Sessions, passwords: Passwords) -> None:
    page = files("dlnn_search.dashboard").joinpath("log_in.html").read_text("utf-8")
    style = files("dlnn_search.dashboard").joinpath("log_in.css").read_text("utf-8")
    limiter = MovingWindowRateLimiter(MemoryStorage())

    def shown(message: str | None, status: int = 200) -> Response:
        text = render_template_string(
            page, message=message, next=_local_path(request.values.get("next"))
        )
        answer = Response(text, status, mimetype="text/html")
        answer.headers["Content-Security-Policy"] = _LOG_IN_POLICY
        return answer

    @app.get("/log-in/style.css", endpoint="style")
    def _style() -> Response:
        return Response(style, mimetype="text/css")

    @app.route("/log-in", methods=["GET", "POST"], endpoint="log_in")
    def _log_in() -> WerkzeugResponse:
        if request.method != "POST":
            if sessions.role(session.get("token")):
                return redirect(_local_path(request.args.get("next")))
            return shown(None)
        request.max_content_length = MAX_LOG_IN_BYTES
        if not (
            limiter.hit(ATTEMPTS, request.remote_addr or "")
            and limiter.hit(ATTEMPTS_OF_ALL, "everybody")
        ):
            answer = shown("Too many attempts. Wait a minute, then try again.", 429)
            answer.headers["Retry-After"] = "60"
            return answer
        forms.protect()
        role = passwords.role_of(request.form.get("password", ""))
        if role is None:
            return shown("This password is not right.", 401)
        session.clear()  # nothing of before the log-in lives on in it
        session.permanent = True
        session["token"] = sessions.begin(role)
        return redirect(_local_path(request.form.get("next")), 303)

    @app.post("/log-out", endpoint="log_out")
    def _log_out() -> WerkzeugResponse:
        sessions.end(session.get("token"))
        session.clear()
        return redirect("/log-in", 303)

    @app.errorhandler(CSRFError)
    def _stale(error: CSRFError) -> Response:
        return shown("This page was open for too long. Please try again.", 400)


def _refuse_strangers(asked: Request, hosts: Collection[str] | None) -> WerkzeugResponse | None:
    """Refuse calls by another name, and changes that another site's page asks for."""
    host = asked.environ.get("HTTP_HOST", "")
    if hosts is not None and _hostname(host) not in hosts:
        return _told(403, f"Expected one of these as the host: {', '.join(sorted(hosts))}.")
    if asked.method in READING_METHODS:
        return None
    origin = asked.headers.get("Origin")
    if origin is None:  # no browser, or a page of this very site
        is_own = asked.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")
    else:
        is_own = origin.lower().partition("://")[2] == host.lower()
    return None if is_own else _told(403, "A page of another site may change nothing here.")


def _hostname(host: str) -> str | None:
    try:
        return None if "@" in host else urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _to_log_in(asked: Request) -> WerkzeugResponse:
    """Refuse whoever is not logged in; a browser's window is led to the log-in page."""
    if asked.method == "GET" and "text/html" in asked.headers.get("Accept", ""):
        wanted = asked.full_path.rstrip("?")
        return redirect(f"/log-in?{urlencode({'next': _local_path(wanted)})}", 303)
    return _told(401, "Log in first, at /log-in.")


def _told(status: int, reason: str) -> WerkzeugResponse:
    """Return an answer in the form that optuna-dashboard's pages show as a message."""
    return told(status, {"reason": reason})


def told(status: int, content: object) -> WerkzeugResponse:
    """Return an answer to optuna-dashboard's pages."""
    return WerkzeugResponse(json.dumps(content), status, mimetype="application/json")


def _local_path(wanted: str | None) -> str:
    """Return a path of this server: nobody is led elsewhere after the log-in."""
    start = "/dashboard"
    if not wanted or not wanted.startswith("/") or len(wanted) > MAX_PATH_LENGTH:
        return start
    # Browsers read '//host' and '/\\host' as another server, and skip tabs and line ends.
    if wanted[1:2] in ("/", "\\") or any(ord(letter) < 0x21 for letter in wanted):
        return start
    return start if wanted == "/" else wanted


def _add_to_page(answer: WerkzeugResponse, *, is_viewer: bool, has_log_in: bool) -> None:
    """Say in the page who is logged in, with the button that ends it; hide what viewers may not."""
    if answer.status_code != 200 or request.method != "GET":
        return
    added = _VIEWERS_STYLE if is_viewer else f'<script src="{REFUSED_SCRIPT}"></script>'
    added += f'{_NARROW_STYLE}<script src="{STUDIES_SCRIPT}"></script>'
    if has_log_in:
        added += _BAR.replace("ROLE", "Viewer: read-only" if is_viewer else "Editor")
    text = answer.get_data(as_text=True)
    answer.set_data(text.replace("</body>", f"{added}</body>", 1))
