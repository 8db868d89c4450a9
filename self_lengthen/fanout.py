"""Many units of work at once: bounded, pulled one by one, resumable from a journal.

A unit is a number from 0 to total - 1; `work(unit)` returns an `Outcome`, which is one line of the
journal. Units that the journal holds are not done again. A unit whose requests fail for good is
counted and left out of the journal, so that the next run tries it again; failures without a success
between them stop the run early and show the first real error. Memory does not grow with the units.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from self_lengthen.endpoint import EndpointError, Reply, Sampling
from self_lengthen.errors import RunError
from self_lengthen.extension import Chat
from self_lengthen.files import Journal, Row
from self_lengthen.progress import Progress

STOP_AFTER_FAILURES = 8  # in a row: the server is gone or refuses everything
MOST_FAILED = 0.05  # share of units; more is no accident, and the step does not count as complete

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What one unit cost and how its attempts went; also its way to the server."""

    chat_: Chat
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0

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
    ) -> None:
        self.journal, self.concurrency = journal, concurrency
        self._finished = bytearray(total)
        for record in journal.records():
            self._finished[record["unit"]] = 1
        self.counts = Counts(total, sum(self._finished))
        self._enough = math.ceil(finish_ratio * total)
        self._pending = self._unfinished()
        self._progress = Progress(name, total, self.counts.finished)
        self._failures_in_a_row = 0
        self._first_error: EndpointError | None = None

    def _unfinished(self) -> Iterator[int]:
        return (unit for unit in range(len(self._finished)) if not self._finished[unit])

    async def run(self, work: Callable[[int], Awaitable[Outcome]]) -> Counts:
        """Raises RunError when the server fails systematically."""
        tasks = [asyncio.create_task(self._pull(work)) for _ in range(self.concurrency)]
        try:
            for finished in asyncio.as_completed(tasks):
                await finished
                if self._cut_now():
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._progress.close()
        self.counts.cut = self.counts.total - self.counts.finished - self.counts.failed
        self._judge_failures()
        return self.counts

    async def _pull(self, work: Callable[[int], Awaitable[Outcome]]) -> None:
        for unit in self._pending:
            if self._cut_now():
                return
            try:
                outcome = await work(unit)
            except EndpointError as error:
                self._failed(error)
                continue
            self.journal.append(outcome.record(unit))
            self._failures_in_a_row = 0
            self.counts.finished += 1
            self._progress.advance(outcome.row is not None)

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
