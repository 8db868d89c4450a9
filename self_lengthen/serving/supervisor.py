"""Restarts what dies of a running server: with back-off, and so often an hour at most.

A worker that dies too often is given up, and the server goes on with the others; without any
worker, controller or API server left it has failed.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from self_lengthen.errors import RunError
from self_lengthen.owned import Owned

MOST_RESTARTS = 5  # of one process in an hour; more is no accident
WINDOW_S = 3600.0
FIRST_PAUSE_S = 1.0  # doubled with every restart in the hour

log = logging.getLogger(__name__)


class Supervised:
    """One process and its restarts."""

    def __init__(self, process: Owned, start: Callable[[], Owned], spare: bool) -> None:
        """`spare`: there may be others that do the same, so that it can be given up."""
        self.process, self.spare = process, spare
        self.given_up = False
        self._start = start
        self._deaths: deque[float] = deque()
        self._again_at: float | None = None

    def look(self, now_s: float) -> None:
        """Restart the process when it has ended and its pause is over.

        Raises RunError when it ends too often and nothing else does its work.
        """
        if self.given_up or (status := self.process.poll()) is None:
            return
        if self._again_at is None:
            self._died(status, now_s)
        elif now_s >= self._again_at:
            self.process.stop()
            self.process, self._again_at = self._start(), None

    def _died(self, status: int, now_s: float) -> None:
        while self._deaths and now_s - self._deaths[0] > WINDOW_S:
            self._deaths.popleft()
        self._deaths.append(now_s)
        line = f"{self.process.name} ended with status {status}; log: {self.process.log}"
        if len(self._deaths) > MOST_RESTARTS:
            self._give_up(f"{line}; it is not restarted a {MOST_RESTARTS + 1}th time in an hour")
            return
        pause_s = FIRST_PAUSE_S * 2 ** (len(self._deaths) - 1)
        self._again_at = now_s + pause_s
        number = f"restart {len(self._deaths)} of {MOST_RESTARTS}"
        log.warning("%s; %s in %.0f s", line, number, pause_s)

    def _give_up(self, line: str) -> None:
        self.given_up = True
        if not self.spare:
            raise RunError(f"{line}\n{self.process.log_tail()}")
        log.warning("%s; the others go on", line)


def look_after(all_: Iterable[Supervised]) -> None:
    """One look at everything. Raises RunError when what is needed cannot be kept alive."""
    everything = list(all_)
    for supervised in everything:
        supervised.look(time.monotonic())
    workers = [supervised for supervised in everything if supervised.spare]
    if workers and all(worker.given_up for worker in workers):
        last = workers[-1].process
        raise RunError(f"all workers have died too often; log: {last.log}\n{last.log_tail()}")
