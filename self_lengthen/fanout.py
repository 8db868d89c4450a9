"""Many units of work at once: bounded, pulled one by one, resumable from a journal.

A unit is a number from 0 to total - 1; `work(unit)` returns an `Outcome`, which is one line of the
journal. Units that the journal holds are not done again. A unit whose requests fail for good is
counted and left out of the journal, so that the next run tries it again; failures without a success
between them stop the run early and show the first real error. Memory does not grow with the units.
How many are in flight follows the load of the server, or is as given.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from self_lengthen.endpoint import EndpointError, Reply, Sampling
from self_lengthen.errors import RunError
from self_lengthen.extension import Chat
from self_lengthen.files import Journal, Row
from self_lengthen.pace import PACE_S, START, Load, full_target, next_target
from self_lengthen.progress import Progress

STOP_AFTER_FAILURES = 8  # in a row: the server is gone or refuses everything
MOST_FAILED = 0.05  # share of units; more is no accident, and the step does not count as complete

TellLoad = Callable[[], Awaitable[Load | None]]

log = logging.getLogger(__name__)


class Places(Protocol):
    """Places in the engines' batches for attempts ahead of their turn, see attempts.py."""

    def take_place(self) -> bool: ...

    def give_back_place(self) -> None: ...


class NoPlaces:
    def take_place(self) -> bool:
        return False

    def give_back_place(self) -> None:
        raise AssertionError("none was taken")


@dataclass
class Tally:
    """What one unit cost and how its attempts went; also its way to the server."""

    chat_: Chat
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    places: Places = field(default_factory=NoPlaces)

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        reply = await self.chat_.chat(model, user, sampling, seed=seed, opened_with=opened_with)
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        return reply


@dataclass(frozen=True)
class Outcome:
    """A finished unit: its row when it is kept, else the reason why it is dropped."""

    id: str
    row: Row | None
    reason: str | None
    tally: Tally

    def record(self, unit: int) -> Row:
        tally = self.tally
        return {
            "unit": unit,
            "id": self.id,
            "kept": self.row is not None,
            "reason": self.reason,
            "accepted": tally.accepted,
            "rejected": dict(tally.rejected),
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
            "row": self.row,
        }


@dataclass
class Counts:
    """Units of one step: total = finished (in the journal) + failed + cut."""

    total: int
    finished: int
    failed: int = 0
    cut: int = 0
    idle_share: float | None = None  # of the engines, while this ran; None: they did not tell


class FanOut:
    """Runs the units of one step that its journal does not hold yet."""

    def __init__(
        self,
        name: str,
        total: int,
        journal: Journal,
        *,
        concurrency: int,
        finish_ratio: float = 1.0,
        order: Iterable[int] | None = None,
    ) -> None:
        """`concurrency`: units in flight; 0: as the server's load allows. `order`: of the units."""
        self.journal, self.adapts = journal, concurrency == 0
        self.target = concurrency or START
        self._finished = bytearray(total)
        for record in journal.records():
            self._finished[record["unit"]] = 1
        self.counts = Counts(total, sum(self._finished))
        self._enough = math.ceil(finish_ratio * total)
        units = range(total) if order is None else order
        self._pending = (unit for unit in units if not self._finished[unit])
        self._pullers: set[asyncio.Task] = set()
        self._ahead = self._nearly_free = 0
        self._idle: list[float] = []
        self._progress = Progress(name, total, self.counts.finished)
        self._failures_in_a_row = 0
        self._first_error: EndpointError | None = None

    async def run(
        self, work: Callable[[int], Awaitable[Outcome]], tell_load: TellLoad | None = None
    ) -> Counts:
        """Raises RunError when the server fails systematically."""
        self._work, self._over = work, asyncio.get_running_loop().create_future()
        pacing = [asyncio.create_task(self._keep_pace(tell_load))] if tell_load else []
        self._start_pullers()
        try:
            await self._over
        finally:
            tasks = [*pacing, *self._pullers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._progress.close()
        self.counts.cut = self.counts.total - self.counts.finished - self.counts.failed
        if self._idle:
            self.counts.idle_share = round(sum(self._idle) / len(self._idle), 3)
        self._judge_failures()
        return self.counts

    def take_place(self) -> bool:
        """Whether one more may be in flight: never while units wait, for pullers fill the target;
        nor where it would slow the others down; nor where the number in flight does not follow the
        load, for then nobody knows."""
        in_flight = len(self._pullers) + self._ahead
        free = self.adapts and in_flight < min(self.target, self._nearly_free)
        self._ahead += free
        return free

    def give_back_place(self) -> None:
        self._ahead -= 1

    def _start_pullers(self) -> None:
        for _ in range(self.target - len(self._pullers)):
            puller = asyncio.create_task(self._pull())
            self._pullers.add(puller)
            puller.add_done_callback(self._ended)

    def _ended(self, puller: asyncio.Task) -> None:
        self._pullers.discard(puller)
        if puller.cancelled():
            return
        error = puller.exception()  # asked for in any case, or asyncio complains of it
        if self._over.done():
            return
        if error:
            self._over.set_exception(error)
        elif not self._pullers or self._cut_now():
            self._over.set_result(None)

    async def _pull(self) -> None:
        for unit in self._pending:
            if self._cut_now():
                return
            try:
                outcome = await self._work(unit)
            except EndpointError as error:
                self._failed(error)
            else:
                self._finish(unit, outcome)
            if len(self._pullers) > self.target:
                self._pullers.discard(asyncio.current_task())  # at once: others look as well
                return

    def _finish(self, unit: int, outcome: Outcome) -> None:
        self.journal.append(outcome.record(unit))
        self._failures_in_a_row = 0
        self.counts.finished += 1
        self._progress.advance(outcome.row is not None)

    async def _keep_pace(self, tell_load: TellLoad) -> None:
        """Look at the engines' load every PACE_S seconds, and follow it where that is asked for."""
        load = await tell_load()
        while True:
            if load and self.adapts:
                self._nearly_free = load.nearly_free
                self.target = next_target(self.target, load) if self._idle else full_target(load)
                self._start_pullers()
            await asyncio.sleep(PACE_S)
            if load := await tell_load():
                self._idle.append(load.idle_share)

    def _cut_now(self) -> bool:
        return self.counts.finished >= self._enough

    def _failed(self, error: EndpointError) -> None:
        self.counts.failed += 1
        self._failures_in_a_row += 1
        self._first_error = self._first_error or error
        if self._failures_in_a_row >= STOP_AFTER_FAILURES:
            raise RunError(f"{self._failures_in_a_row} units failed in a row: {self._first_error}")

    def _judge_failures(self) -> None:
        failed, total = self.counts.failed, self.counts.total
        if failed > MOST_FAILED * total and not self._cut_now():
            raise RunError(
                f"{failed} of {total} units failed; the same command tries them again: "
                f"{self._first_error}"
            )
        if failed:
            log.warning("%d of %d units failed: %s", failed, total, self._first_error)


def summed(records: Iterator[Row]) -> dict[str, Any]:
    """Attempts, tokens and dropped units over the records of a journal, for the step's summary."""
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    accepted = prompt = completion = 0
    for record in records:
        rejected.update(record["rejected"])
        accepted += record["accepted"]
        prompt += record["prompt_tokens"]
        completion += record["completion_tokens"]
        if not record["kept"]:
            dropped[record["reason"]] += 1
    total = accepted + rejected.total()
    return {
        "attempts": {"total": total, "accepted": accepted, "rejected": dict(rejected)},
        "tokens": {"prompt": prompt, "completion": completion},
        "dropped": dict(dropped),
    }
