"""The command line. Imports only what parsing needs; each command imports its own work."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from dlnn_search._version import __version__
from dlnn_search.cli import control as cli_control
from dlnn_search.cli import groups
from dlnn_search.cli import insight as cli_insight
from dlnn_search.cli import results as cli_results
from dlnn_search.cli import search as cli_search
from dlnn_search.cli.options import HelpCommand, HelpGroup
from dlnn_search.errors import DlnnSearchError, ExitCode
from dlnn_search.files import shipped
from dlnn_search.secret import STORAGE_PASSWORD, hidden, taken_off_command_line


class _Group(HelpGroup):
    """Turns errors into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DlnnSearchError as error:
            if ctx.params.get("debug"):
                _print_traceback()
            print(f"Error: {hidden(str(error))}", file=sys.stderr)
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
            if (lacking := _lacking(error)) is not None:
                print(f"Error: {lacking}", file=sys.stderr)
                raise typer.Exit(lacking.exit_code) from error
            what_to_do = "Run the command again with --debug for the traceback, and report it."
            if ctx.params.get("debug"):
                _print_traceback()
                what_to_do = "Report it with the traceback above."
            said = hidden(str(error))
            print(
                f"Error: this is a bug of dlnn-search: {type(error).__name__}: {said}\n"
                + what_to_do,
                file=sys.stderr,
            )
            raise typer.Exit(ExitCode.BUG) from error


def _print_traceback() -> None:
    print(hidden(traceback.format_exc()), end="", file=sys.stderr)


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
    others = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if len(others) < len(sys.argv) - 1:
        sys.argv[1:] = ["--debug", *others]
    with _ending_by_signals():
        app(prog_name="dlnn-search")


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
