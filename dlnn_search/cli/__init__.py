"""The command line. Imports only what parsing needs; each command imports its own work."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from dlnn_search._version import __version__
from dlnn_search.cli import control as cli_control
from dlnn_search.cli import groups
from dlnn_search.cli import insight as cli_insight
from dlnn_search.cli import results as cli_results
from dlnn_search.cli import search as cli_search
from dlnn_search.cli.options import HelpCommand, HelpGroup, storage_words
from dlnn_search.errors import DlnnSearchError, ExitCode, error_words, one_line, wrapped
from dlnn_search.files import is_users_code, shipped
from dlnn_search.secret import STORAGE_PASSWORD, hidden, taken_off_command_line

_log = logging.getLogger(__name__)


class _Group(HelpGroup):
    """Turns errors into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        typed = [*ctx._protected_args, *ctx.args]  # they are gone afterwards
        try:
            return super().invoke(ctx)
        except DlnnSearchError as error:
            error.sentence = self._with_storage(error.sentence, typed)
            _say(error, debug=ctx.params.get("debug"))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:  # `dlnn-search trials ... | head`
            sys.stderr.close()
            raise typer.Exit(ExitCode.DONE) from None
        except Exception as error:
            if _is_typers(error):
                _say_plainly(error)
                raise
            debug = ctx.params.get("debug")
            if (told := _lacking(error)) is None:
                told = _bug(error, debug=debug)
            _say(told, debug=debug)
            raise typer.Exit(told.exit_code) from error

    def _with_storage(self, sentence: str, typed: list[str]) -> str:
        """Name the database that was named in the commands that a message advises, too."""
        given = [typed[place + 1] for place in range(len(typed) - 1) if typed[place] == "--storage"]
        given += [word.partition("=")[2] for word in typed if word.startswith("--storage=")]
        if not given or "'dlnn-search " not in sentence:
            return sentence
        where = storage_words(given[-1])

        def completed(match: re.Match[str]) -> str:
            name, others = match[1], match[2]
            command: Any = self.commands.get(name)
            if name == "storage":
                command = command.commands.get(others.split()[0]) if others.split() else None
            takes_it = any("--storage" in option.opts for option in getattr(command, "params", ()))
            if not takes_it or "--storage" in others:
                return match[0]
            return f"'dlnn-search {name}{others}{where}'"

        return re.sub(r"'dlnn-search ([\w-]+)([^']*)'", completed, sentence)


def _say(error: DlnnSearchError, *, debug: bool) -> None:
    """Print an error, wrapped at the width of a terminal; with `--debug` the traceback first."""
    if debug:
        print(hidden(traceback.format_exc()), end="", file=sys.stderr)
    words = hidden(error_words(error))
    if sys.stderr.isatty():
        with suppress(OSError):  # a terminal that does not know its width
            words = wrapped(words, os.get_terminal_size(sys.stderr.fileno()).columns or len(words))
    print(words, file=sys.stderr)


def _bug(error: Exception, *, debug: bool) -> DlnnSearchError:
    """Return an unexpected error in words."""
    what_to_do = (
        "Report it with the traceback above."
        if debug
        else "Run the command again with --debug for the traceback, and report it."
    )
    said = f"{type(error).__name__}: {error}".rstrip(". :")
    told = DlnnSearchError(f"this is a bug of dlnn-search: {said}. {what_to_do}")
    told.exit_code = ExitCode.BUG
    return told


def _lacking(error: Exception) -> DlnnSearchError | None:
    """Return the error in words, where the installed Optuna lacks something."""
    if "optuna" not in sys.modules:
        return None
    from dlnn_search.optuna_version import lacking_as_of

    return lacking_as_of(error)


#: What typer's checks of numbers say, and what a user understands.
PLAIN = {
    "valid integer": "Expected a whole number, such as 3.",
    "valid number": "Expected a number, such as 0.5.",
}


def _say_plainly(error: Any) -> None:
    for said, plain in PLAIN.items():
        if said in str(getattr(error, "message", "")):
            error.message = plain


def _is_typers(error: Exception) -> bool:
    """Whether it is one of the parser's own, which it shows and exits with by itself."""
    return type(error).__module__.split(".")[0] in ("typer", "click")  # it vendors it or not


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # A help page is as wide as the terminal; typer's own limit is 80 columns.
    context_settings={"max_content_width": 10_000},
    help="Search the hyperparameters of Keras models, with any number of workers.",
    epilog=f"Help on a command: dlnn-search COMMAND --help\nDocumentation: {shipped('docs')}",
)
#: The commands as the help lists them.
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Search": (
        cli_search.studies,
        cli_search.new,
        cli_search.validate,
        cli_search.doctor,
        cli_search.start,
        cli_search.worker,
        cli_insight.lr_range,
    ),
    "Steer": (
        cli_control.status,
        cli_search.dashboard,
        cli_control.logs,
        cli_control.pause,
        cli_control.resume,
        cli_control.stop,
        cli_control.rename,
        cli_control.delete,
    ),
    "Results": (
        cli_results.trials,
        cli_results.best,
        cli_insight.confirm,
        cli_results.export,
        cli_results.evaluate,
        cli_results.predict,
        cli_insight.importance,
        cli_insight.regions,
        cli_insight.plots,
        cli_insight.compare,
        cli_insight.retune,
        cli_results.crossvalidate,
        cli_results.ledger,
    ),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(cls=HelpCommand, rich_help_panel=panel)(command)
app.add_typer(groups.data_app, name="data", help="Manage the data sets.", rich_help_panel="Data")
app.add_typer(
    groups.storage_app, name="storage", help="Manage the database.", rich_help_panel="Storage"
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dlnn-search {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Read the options before the command."""


def main() -> None:
    """Run the command line; `--debug` may stand anywhere."""
    _hide_password()
    _quiet_libraries()
    others = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if len(others) < len(sys.argv) - 1:
        sys.argv[1:] = ["--debug", *others]
    with _ending_by_signals():
        app(prog_name="dlnn-search")


class _Silent(logging.Logger):
    """A library's logger that takes no handler which would write to the terminal."""

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        if isinstance(hdlr, logging.NullHandler):
            super().addHandler(hdlr)


def _quiet_libraries() -> None:
    """Keep what libraries say to developers off the terminal; a worker's log gets the warnings.

    Before they are imported, which takes seconds: so all commands have it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # of each model that it traces anew
    plain = logging.getLoggerClass()
    logging.setLoggerClass(_Silent)
    logging.getLogger("optuna").addHandler(logging.NullHandler())
    logging.setLoggerClass(plain)
    # Its pool logs a clean-up that Ctrl-C cut off, with the traceback.
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Show a warning of the user's own code in one line, and log those of libraries."""
    said = one_line(str(message))
    if is_users_code(filename) and not category.__module__.startswith("optuna."):
        print(f"Warning: {hidden(said)} ({filename}, line {lineno})", file=sys.stderr)
    else:
        _log.info("%s: %s (%s, line %d)", category.__name__, said, filename, lineno)


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does: by a KeyboardInterrupt, never by exit code 143.

    What is done inside may hear signals in its own way. Afterwards none is heard any more: Python
    takes its handlers off while it ends, which lasts a second where TensorFlow was loaded.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _hide_password() -> None:
    """Start again without the database's password, if the command line shows it to everybody."""
    cleaned = taken_off_command_line(sys.argv[1:], os.environ)
    if cleaned is None:
        return
    print(
        "Warning: a password on the command line can be seen by every user of this machine. It "
        f"was taken off just now; better put it into a file that {STORAGE_PASSWORD}_FILE names, "
        "and leave it out of --storage.",
        file=sys.stderr,
        flush=True,
    )
    started_as = sys.orig_argv[: len(sys.orig_argv) - len(cleaned)]
    os.execv(sys.executable, [*started_as, *cleaned])
