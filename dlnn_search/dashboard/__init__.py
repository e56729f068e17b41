"""optuna-dashboard on a search's database: who may see it, and where it is served."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import optuna
import waitress
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from dlnn_search.commands.confirm import check_new_name
from dlnn_search.dashboard.access import (
    REFUSED_SCRIPT,
    STUDIES_SCRIPT,
    Passwords,
    Sides,
    gate,
    told,
)
from dlnn_search.errors import DlnnSearchError, UsageError
from dlnn_search.metrics import duration, metric_name, metric_unit, metric_value
from dlnn_search.report.figures import learning_curves, narrowing_figure
from dlnn_search.report.live import state_words
from dlnn_search.report.pages import put_into_dashboard
from dlnn_search.results.comparison import narrowing_of
from dlnn_search.results.status import StudyStatus, shown_curves, study_status
from dlnn_search.secret import hidden
from dlnn_search.storage.budget import budget_use, time_words
from dlnn_search.storage.database import Database, database_url, open_database
from dlnn_search.storage.halves import delete_study, lost_words, rename_study
from dlnn_search.storage.optuna import remembering
from dlnn_search.storage.studies import StoredStudy, all_studies
from dlnn_search.storage.trials import count_epochs

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


if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

THREADS = 8
#: What the dashboard sends is a note or a setting; a larger request is a nuisance.
MAX_REQUEST_BYTES = 4 * 1024**2
#: What optuna-dashboard asks for to delete, and to rename.
_DELETED = re.compile(r"DELETE /api/studies/(\d+)")
_RENAMED = re.compile(r"POST /api/studies/(\d+)/rename")
REFRESH_SECONDS = 10.0
FIGURE_ID = "learning-curves"
REGIONS_ID = "regions"
#: Where every page finds how the studies stand.
STUDIES_STATES = "/studies.json"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_IMPORTANCES = re.compile(r"/api/studies/(\d+)/param_importances/?")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """Where and to whom the dashboard is shown.

    Attributes:
        port: 0 is any free one.
        passwords: None: whoever reaches a local address may do everything.
        read_only: Nobody may change anything.
        behind_proxy: A reverse proxy in front tells the visitor's address and scheme by
            `X-Forwarded-For` and `X-Forwarded-Proto`.
    """

    host: str
    port: int
    passwords: Passwords | None = None
    read_only: bool = False
    behind_proxy: bool = False


def check_may_serve(serving: Serving) -> None:
    """Refuse to show trials to a network without a log-in.

    Raises:
        UsageError: If the address is not this machine's own and no password is set.
    """
    if serving.passwords is not None or is_local(serving.host):
        return
    raise UsageError(
        f"Other machines can reach --host {serving.host}: expected a password, got none. Write one "
        "into a file and set DLNN_SEARCH_DASHBOARD_PASSWORD_FILE to its name (for those who may "
        "change trials) or DLNN_SEARCH_VIEWER_PASSWORD_FILE (for those who may only look). "
        "Or leave out --host and connect with 'ssh -L 8080:127.0.0.1:8080 THIS_MACHINE'."
    )


def is_local(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    editor: Database | None, viewer: Database, serving: Serving, ready: Callable[[str], None]
) -> None:
    """Serve the dashboard until interrupted.

    Args:
        editor: What editors see and change, and where the learning curves are painted; None:
            nothing is written at all.
        viewer: What viewers see; may be opened read-only, or by a role that can only read.
        serving: Where, and to whom.
        ready: Told the address when it answers there.

    Raises:
        UsageError: If the port cannot be had, or a log-in is missing.
    """
    check_may_serve(serving)
    listener = _listen(serving.host, serving.port)
    ended = threading.Event()
    try:
        sides = Sides(
            viewer=_with_states(viewer, _application(_remembering(viewer))),
            editor=None if serving.read_only or editor is None else _editors_side(editor),
        )
        known = LOCAL_NAMES | {serving.host} if is_local(serving.host) else None
        server = waitress.create_server(
            gate(sides, serving.passwords, known, behind_proxy=serving.behind_proxy),
            sockets=[listener],
            threads=THREADS,
            ident=None,
            max_request_body_size=MAX_REQUEST_BYTES,
            # Who calls is told by the socket, or by the one proxy that is known to stand before.
            clear_untrusted_proxy_headers=not serving.behind_proxy,
        )
        if editor is None:
            _warn_of_lost(viewer)
        else:
            threading.Thread(target=paint, args=(editor, ended), daemon=True).start()
        shown = f"[{serving.host}]" if ":" in serving.host else serving.host
        with suppress(KeyboardInterrupt):  # the usual end, also before the server waits for it
            ready(f"http://{shown}:{listener.getsockname()[1]}/")
            server.run()
    finally:
        ended.set()
        listener.close()


def _application(storage: BaseStorage) -> WSGIApplication:
    """Return optuna-dashboard, which divides by the number of a study's parameters.

    A study of given configs has none: the page is told that nothing is important, as it is told
    of a study without trials, instead of showing an error.
    """
    dashboard = wsgi(storage)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = _IMPORTANCES.fullmatch(environ.get("PATH_INFO", ""))
        if asked is None or _has_parameters(storage, int(asked[1])):
            answer: Iterable[bytes] = dashboard(environ, start_response)
            return answer
        return told(200, {"param_importances": [[]]})(environ, start_response)

    return application


def _with_states(database: Database, theirs: WSGIApplication) -> WSGIApplication:
    """Return optuna-dashboard, whose list of studies says how each one stands."""
    script = files("dlnn_search.dashboard").joinpath("studies.js").read_text("utf-8")

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = environ.get("PATH_INFO")
        if asked == STUDIES_SCRIPT:
            return Response(script, mimetype="text/javascript")(environ, start_response)
        if asked != STUDIES_STATES:
            return theirs(environ, start_response)
        try:
            answer = told(200, _states(database))
        except DlnnSearchError as error:  # the database is away
            answer = told(503, {"reason": hidden(str(error))})
        return answer(environ, start_response)

    return application


def _states(database: Database) -> dict[str, list[str]]:
    """Return lines about each study that has both halves, by its number in the dashboard."""
    found = {}
    for study in all_studies(database):
        with suppress(KeyError):  # its other half is gone
            number = database.optuna.get_study_id_from_name(study.name)
            found[str(number)] = _state_lines(study_status(database, study))
    return found


def _state_lines(status: StudyStatus) -> list[str]:
    better = "lower" if status.direction == "minimize" else "higher"
    metric = f"{metric_name(status.metric)}{metric_unit(status.metric)}"
    limits = [
        f"{name} {duration(limit)}"
        for name, limit in (
            ("wall time", status.use.wall_seconds),
            ("worker-hours", status.use.worker_seconds),
        )
        if limit is not None
    ]
    if status.use.deadline_at is not None:
        limits.append(f"until {time_words(status.use.deadline_at)}")
    budget = ", ".join([f"{status.n_done} of {status.budget} trials", *limits])
    best = status.best
    value = "none yet"
    if best is not None and best.value is not None:
        value = f"{metric_value(status.metric, best.value)} (trial {best.number})"
    return [
        f"Metric: {metric}, {better} is better",
        f"Best: {value}",
        f"Budget: {budget}",
        f"State: {state_words(status)}",
    ]


def _has_parameters(storage: BaseStorage, study_id: int) -> bool:
    try:
        trials = storage.get_all_trials(study_id, deepcopy=False)
    except KeyError:  # deleted: the dashboard says so
        return True
    return any(trial.params for trial in trials)


def _editors_side(database: Database) -> WSGIApplication:
    """Return optuna-dashboard, which deletes and renames studies of ours with both halves."""
    storage = _remembering(database)
    theirs = _with_states(database, _application(storage))
    script = files("dlnn_search.dashboard").joinpath("refused.js").read_text("utf-8")

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '').rstrip('/')}"
        if asked == f"GET {REFUSED_SCRIPT}":
            return Response(script, mimetype="text/javascript")(environ, start_response)
        match = _DELETED.fullmatch(asked) or _RENAMED.fullmatch(asked)
        study = None if match is None else _study_of(database, int(match[1]))
        if match is None or study is None:
            return theirs(environ, start_response)
        try:
            if match.re is _DELETED:
                delete_study(database, study.id, study.name, storage)
                answer = Response(status=204)
            else:
                given = Request(environ).get_json(force=True, silent=True)
                name = str(given.get("study_name") if isinstance(given, dict) else None)
                check_new_name(database, study, name)
                rename_study(database, study.id, study.name, name)
                # As optuna-dashboard itself answers.
                listed = Client(theirs).get("/api/studies").get_json()["study_summaries"]
                answer = told(201, next(one for one in listed if one["study_name"] == name))
        except DlnnSearchError as error:
            answer = told(409, {"reason": hidden(str(error))})
            answer.headers["X-Refused"] = "1"
        return answer(environ, start_response)

    return application


def _study_of(database: Database, optuna_id: int) -> StoredStudy | None:
    """Return our half of a study that the dashboard shows; None where it has none."""
    with suppress(KeyError):
        name = database.optuna.get_study_name_from_id(optuna_id)
        for study in all_studies(database):
            if study.name == name and lost_words(database, study.id, name) is None:
                return study
    return None


def _warn_of_lost(database: Database) -> None:
    for study in all_studies(database):
        words = lost_words(database, study.id, study.name)
        if words is not None:
            log.warning("%s", words)


def _remembering(database: Database) -> BaseStorage:
    """Return Optuna's storage with its memory of finished trials, filled.

    They never change. Without it optuna-dashboard reads all of them again every ten seconds:
    2,000 trials cost 2.6 s of processor time, of which 0.8 s are left.
    """
    storage = remembering(database.optuna)
    # A name may change, in another process, too.
    storage.get_study_name_from_id = database.optuna.get_study_name_from_id  # type: ignore[method-assign]
    for name in optuna.get_all_study_names(storage):
        with suppress(KeyError):  # deleted meanwhile
            storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    return storage


def paint(database: Database, ended: threading.Event) -> None:
    """Keep every study's figure up to date until it ended: one painter, so none is half-drawn."""
    painted: dict[int, tuple[int, int, str]] = {}
    told: set[str] = set()
    while True:
        try:
            for study in all_studies(database):
                # What changes whenever a curve does; and the title.
                n_epochs = count_epochs(database, study.id)
                state = n_epochs, budget_use(database, study.id).settled, study.name
                if state == painted.get(study.id) or not n_epochs:
                    continue
                lost = lost_words(database, study.id, study.name)
                if lost is None:
                    # It may be deleted in this very moment: the next round says so.
                    with suppress(KeyError):
                        _put_figures(database, study)
                        painted[study.id] = state
                elif lost not in told:
                    told.add(lost)
                    log.warning("%s", lost)
        except DlnnSearchError as error:  # the database is away: the next round may find it
            log.warning("The learning curves could not be drawn: %s", error)
        if ended.wait(REFRESH_SECONDS):
            return


def _put_figures(database: Database, study: StoredStudy) -> None:
    drawn = learning_curves(study, shown_curves(database, study))
    put_into_dashboard(database, study.name, drawn, FIGURE_ID)
    narrowing = narrowing_of(optuna.load_study(study_name=study.name, storage=database.optuna))
    if narrowing.regions:
        drawn = narrowing_figure(narrowing, f"Regions of {study.name}, by trial")
        put_into_dashboard(database, study.name, drawn, REGIONS_ID)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OverflowError:
        raise UsageError(f"Expected a port from 0 to 65535, got --port {port}.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} on {host} is in use, perhaps by another dashboard. "
                f"Choose another: --port {port + 1 if port < 65_535 else 8080}"
            ) from error
        raise UsageError(
            f"Cannot listen on {host}, port {port}: {error.strerror or error}. "
            "Choose another address with --host or --port."
        ) from error
    return listener
