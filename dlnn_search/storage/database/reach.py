"""How long a database has answered this process: leases that nobody could renew are no losses."""

from __future__ import annotations

import time

#: No outage was seen: longer than any lease.
EVER_SECONDS = 1e9


class Reach:
    """What one process has seen of a database's outages.

    While a database is away no living worker renews its lease. The first process that reaches it
    again must not take these for dead: for as long as a lease lasts they have their chance.
    A process that comes new has seen no outage, and waits for nothing.
    """

    def __init__(self) -> None:
        self._is_away = False
        self._since: float | None = None

    def failed(self) -> None:
        """Note that the database did not answer."""
        self._is_away = True

    def answered(self) -> None:
        """Note that the database answers."""
        if self._is_away:
            self._is_away, self._since = False, time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long it has answered; `EVER_SECONDS` where it never failed to."""
        return EVER_SECONDS if self._since is None else time.monotonic() - self._since
