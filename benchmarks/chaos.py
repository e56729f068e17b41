"""Kill, freeze and restart whatever a search consists of, and check that nothing is lost.

    python benchmarks/chaos.py --database postgresql sqlite --json chaos.json

Real searches by the command line: workers are killed (SIGKILL), one is frozen past its lease and
woken, the PostgreSQL server is restarted, the supervisor is killed and started again. At the end
the books must balance; if they do not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it sees its own folder alone

from benchmarks.chaos_account import Account, account_for
from benchmarks.chaos_place import STUDY, Server
from dlnn_search.storage.database import open_database
from dlnn_search.storage.schema import curves, now, slots, workers

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NAME = "chaos"
METRIC = "common_sense_error"
POLL_SECONDS = 0.2
#: A search that makes no progress for that long is stuck.
STUCK_SECONDS = 600.0


@dataclass
class Mischief:
    """What was done to a search, and how long it took.

    Attributes:
        n_frozen: Workers that were stopped, lost their slot to another, and were woken.
        n_early_ends: How often `start` ended by itself while slots were open: none is allowed.
    """

    n_killed: int = 0
    n_frozen: int = 0
    n_fast_restarts: int = 0
    n_immediate_restarts: int = 0
    n_supervisors_killed: int = 0
    n_early_ends: int = 0
    seconds: float = 0.0
    frozen_workers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    """A worker that was stopped in the middle of a trial."""

    pid: int
    worker: str
    slot_id: int
    fence: int


class Chaos:
    """One search, and what happens to it."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, url: str, server: Server | None
    ) -> None:
        self._options = options
        self._folder = folder
        self._url = url
        self._server = server
        self._random = random.Random(options.seed)
        self._study = folder / f"{NAME}.py"
        self._start: subprocess.Popen[bytes] | None = None
        self._frozen: Frozen | None = None
        self._spared: set[int] = set()
        self._n_said = 0
        self.done = Mischief()
        text = STUDY.replace("BATCH_SIZE", str(options.batch_size))
        self._study.write_text(text.replace("EPOCHS", str(options.epochs)), encoding="utf-8")
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def run(self) -> None:
        """Search to the end of the budget, and do one piece of mischief after another.

        Raises:
            TimeoutError: If the search makes no progress any more.
        """
        began = time.monotonic()
        plan = self._plan()
        kill_at = float("inf")
        n_settled, moved_at = 0, began
        try:
            self._begin()
            while self._runs():
                time.sleep(POLL_SECONDS)
                settled = self._n_settled()
                if settled is None:  # the server is away, or there are no tables yet
                    continue
                if settled > n_settled:
                    n_settled, moved_at = settled, time.monotonic()
                if time.monotonic() - moved_at > STUCK_SECONDS:
                    raise TimeoutError(f"No slot was settled for {STUCK_SECONDS:g} s.")
                if kill_at == float("inf") and self._in_the_middle():
                    kill_at = time.monotonic()
                if time.monotonic() > kill_at and n_settled < self._options.trials:
                    self._kill_a_worker()
                    kill_at = time.monotonic() + self._options.kill_every * self._random.uniform(
                        0.5, 1.5
                    )
                self._look_after_the_frozen()
                if plan and n_settled >= plan[0][0] and plan[0][1]():
                    plan.pop(0)
        finally:
            self.done.seconds = round(time.monotonic() - began, 1)
            self._end()

    def _plan(self) -> list[tuple[float, Callable[[], bool]]]:
        """Return what shall happen when so many slots are settled, in order."""
        n_trials = self._options.trials
        plan: list[tuple[float, Callable[[], bool]]] = [
            (0.1 * n_trials + 0.7 * n_trials * n / self._options.freezes, self._freeze_a_worker)
            for n in range(self._options.freezes)
        ]
        restarts = self._options.restarts if self._server is not None else 0
        for n in range(restarts):
            mode = ("immediate", "fast")[n % 2]
            plan.append((n_trials * (n + 1) / (restarts + 1), self._restart(mode)))
        if self._options.kill_supervisor:
            plan.append((n_trials / 2, self._kill_the_supervisor))
        return sorted(plan, key=lambda step: step[0])

    def _begin(self) -> None:
        """Start the search as a user does."""
        output = (self._folder / "start.log").open("ab")
        self._n_said = output.tell()
        self._start = subprocess.Popen(
            [
                *(sys.executable, "-m", "dlnn_search", "start", str(self._study)),
                *("--workers", str(self._options.workers)),
                *("--trials", str(self._options.trials)),
                *("--lease", f"{self._options.lease:g}s"),
            ],
            cwd=self._folder,
            env={
                **os.environ,
                "DLNN_SEARCH_STORAGE": self._url,
                "DLNN_SEARCH_FILES": str(self._folder),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.close()

    def _runs(self) -> bool:
        """Whether the search goes on; a start that gave up before the end is started again."""
        assert self._start is not None
        code = self._start.poll()
        if code is None:
            return True
        if code == 0:
            return False
        self.done.n_early_ends += 1
        self._say(f"start ended with {code}: {self._said()}")
        if self.done.n_early_ends > 3:
            return False
        self._begin()
        return True

    def _is_searching(self) -> bool:
        """Whether the present start has shown its first line."""
        return (self._folder / "start.log").stat().st_size > self._n_said

    def _said(self) -> str:
        text = (self._folder / "start.log").read_text(encoding="utf-8", errors="replace")
        return text[-1000:]

    def processes(self) -> list[psutil.Process]:
        """Return what runs of this search: start, workers, and what those started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if (
                    str(self._study) in process.cmdline()
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def _workers(self) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if "worker" in process.cmdline() and process.pid not in self._spared:
                    found.append(process)
        return found

    def _kill_a_worker(self) -> None:
        # By place, not by worker: the fewer live, the fewer are killed, or none would ever train.
        place = self._random.randrange(self._options.workers)
        living = self._workers()
        if place < len(living):
            victim = living[place]
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                self.done.n_killed += 1
                self._say(f"killed worker {victim.pid}")

    def _freeze_a_worker(self) -> bool:
        if self._frozen is not None:
            return False
        found = self._in_the_middle()
        if not found:
            return False
        self._frozen = chosen = self._random.choice(found)
        self._spared.add(chosen.pid)
        try:
            os.kill(chosen.pid, signal.SIGSTOP)
        except ProcessLookupError:
            self._frozen = None
            return False
        self._say(f"froze worker {chosen.pid}")
        return True

    def _look_after_the_frozen(self) -> None:
        """Wake a frozen worker when another one has its slot."""
        frozen = self._frozen
        if frozen is None or not self._is_taken(frozen):
            return
        with suppress(ProcessLookupError):
            os.kill(frozen.pid, signal.SIGCONT)
            self.done.n_frozen += 1
            self.done.frozen_workers.append(frozen.worker)
        self._say(f"woke worker {frozen.pid}")
        self._frozen = None

    def _restart(self, mode: str) -> Callable[[], bool]:
        def restart() -> bool:
            assert self._server is not None
            if not self._is_searching():  # a start without a database says so and ends
                return False
            self._say(f"restarting the server ({mode})")
            self._server.restart(mode, self._options.down)
            if mode == "fast":
                self.done.n_fast_restarts += 1
            else:
                self.done.n_immediate_restarts += 1
            return True

        return restart

    def _kill_the_supervisor(self) -> bool:
        assert self._start is not None
        self._say("killed the supervisor")
        self._start.kill()
        self._start.wait()
        self.done.n_supervisors_killed += 1
        time.sleep(2)
        self._begin()
        return True

    def _end(self) -> None:
        """Leave nothing running, whatever went wrong."""
        if self._frozen is not None:
            with suppress(ProcessLookupError):
                os.kill(self._frozen.pid, signal.SIGCONT)
        ends = time.monotonic() + 20
        while self.processes() and time.monotonic() < ends:
            time.sleep(POLL_SECONDS)
        self.left_over = [process.pid for process in self.processes()]
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        if self._start is not None:
            self._start.wait()

    def _n_settled(self) -> int | None:
        with suppress(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            return connection.scalar(
                sa.select(sa.func.count()).select_from(slots).where(slots.c.state == "done")
            )
        return None

    def _in_the_middle(self) -> list[Frozen]:
        """Return the workers that train a trial with an epoch stored and some to come."""
        n_epochs = (
            sa.select(sa.func.count()).where(curves.c.slot_id == slots.c.id).scalar_subquery()
        )
        query = (
            sa.select(workers.c.pid, workers.c.id, slots.c.id, slots.c.fence)
            .join(slots, slots.c.worker == workers.c.id)
            .where(slots.c.state == "held", slots.c.lease_ends_at > now())
            .where(n_epochs >= 1, n_epochs <= max(1, self._options.epochs - 3))
        )
        with suppress(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            return [Frozen(*row) for row in connection.execute(query)]
        return []

    def _is_taken(self, frozen: Frozen) -> bool:
        query = sa.select(slots.c.state, slots.c.fence).where(slots.c.id == frozen.slot_id)
        with suppress(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            row = connection.execute(query).one()
            return bool(row.fence > frozen.fence and row.state != "open")
        return False

    def _say(self, words: str) -> None:
        if not self._options.quiet:
            print(f"{time.strftime('%H:%M:%S')} {self._n_settled()} settled: {words}", flush=True)


@contextmanager
def place(options: argparse.Namespace, kind: str) -> Iterator[tuple[Path, str, Server | None]]:
    """A folder and an empty database of the kind."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{kind}-"))
    server = Server() if kind == "postgresql" else None
    try:
        yield folder, server.url if server else f"sqlite:///{folder / 'dlnn.db'}", server
    finally:
        if server is not None:
            server.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def run(options: argparse.Namespace, kind: str) -> tuple[Mischief, Account]:
    """Search once in chaos, and check what came out."""
    with place(options, kind) as (folder, url, server):
        chaos = Chaos(options, folder, url, server)
        chaos.run()
        database = open_database(url, create=False)
        try:
            account = account_for(
                database,
                NAME,
                n_trials=options.trials,
                metric=METRIC,
                n_compared=options.compare,
            )
        finally:
            database.close()
        done = chaos.done
        account.expect(not chaos.left_over, f"The processes {chaos.left_over} went on.")
        account.expect(not done.n_early_ends, f"start gave up {done.n_early_ends} times.")
        wanted = (options.freezes, options.restarts if server else 0, options.kill_supervisor)
        n_restarts = done.n_fast_restarts + done.n_immediate_restarts
        did = (done.n_frozen, n_restarts, done.n_supervisors_killed)
        account.expect(did == wanted, f"Frozen, restarts, supervisors: {did}, meant {wanted}.")
        account.expect(done.n_killed > 0, "No worker was killed.")
        account.expect(
            account.events.get("fenced", 0) >= done.n_frozen,
            "A worker that had lost its slot did not say so.",
        )
        return done, account


def table(results: dict[str, tuple[Mischief, Account]]) -> str:
    """Return the figures as a table in Markdown."""
    figures: list[tuple[str, Callable[[Mischief, Account], object]]] = [
        ("minutes", lambda done, account: f"{done.seconds / 60:.1f}"),
        ("workers killed", lambda done, account: done.n_killed),
        ("workers frozen past their lease and woken", lambda done, account: done.n_frozen),
        (
            "restarts of the server (fast + immediate)",
            lambda done, account: f"{done.n_fast_restarts} + {done.n_immediate_restarts}",
        ),
        ("supervisors killed", lambda done, account: done.n_supervisors_killed),
        ("slots settled", lambda done, account: f"{account.n_settled} of {account.n_slots}"),
        (
            "outcomes",
            lambda done, account: ", ".join(
                f"{n} {name}" for name, n in sorted(account.outcomes.items())
            ),
        ),
        ("claimed more than once", lambda done, account: account.n_resumed),
        ("lost", lambda done, account: account.n_lost),
        ("doubled", lambda done, account: account.n_doubled),
        ("still running", lambda done, account: account.n_running),
        ("curves with a gap or a repeat", lambda done, account: account.n_gaps),
        ("reported values unlike the curve", lambda done, account: account.n_unlike),
        (
            "differ from an uninterrupted training",
            lambda done, account: f"{account.n_different} of {account.n_compared}",
        ),
    ]
    lines = [f"| | {' | '.join(results)} |", "| --- |" + " --- |" * len(results)]
    for name, figure in figures:
        cells = [str(figure(done, account)) for done, account in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run, print and write; 1 where a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--database", nargs="+", choices=("sqlite", "postgresql"), default=["postgresql", "sqlite"])
    add("--workers", type=int, default=8)
    add("--trials", type=int, default=200)
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=8, help="smaller: longer epochs")
    add("--kill-every", type=float, default=6.0, metavar="SECONDS", help="on average")
    add("--freezes", type=int, default=1, help="workers stopped past their lease")
    add("--lease", type=float, default=45.0, metavar="SECONDS")
    add("--restarts", type=int, default=5, help="of the PostgreSQL server")
    add("--down", type=float, default=2.0, metavar="SECONDS", help="a restart's length")
    add("--no-supervisor", dest="kill_supervisor", action="store_false", help="spare it")
    add("--compare", type=int, default=20, metavar="N", help="trials to train again")
    add("--seed", type=int, default=0, help="of the choice of victims")
    add("--json", type=Path, help="write the figures there")
    add("--keep", action="store_true", help="keep the search's folder")
    add("--quiet", action="store_true")
    options = parser.parse_args()
    results = {kind: run(options, kind) for kind in options.database}
    print(table(results))
    if options.json is not None:
        written = {
            kind: {"mischief": dataclasses.asdict(done), "account": dataclasses.asdict(account)}
            for kind, (done, account) in results.items()
        }
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    wrong = [f"{kind}: {words}" for kind, (_, found) in results.items() for words in found.wrong]
    print("\n".join(wrong) or "Nothing is lost.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
