"""Which worker gets a request: of those that serve its model, the one with the least to do.

But for prompts that open alike: they go to the same worker as long as it has little more to do than
that one, for its prefix cache holds what they open with. Both stages of a micro-round show the same
first half of a draft; so do all attempts at a draft, and both extensions of it.

The API server asks the controller for the list of workers about once a second, not once a request;
what each has to do it counts itself. A list that cannot be renewed is used as it is.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

RENEW_S = 1.0  # age of the list at which it is renewed
AVOID_S = 10.0  # a worker that could not be reached; the controller forgets it after 20
OPENING_CHARS = 2048  # the family's prompt, the instruction, the draft's first lines
LEANING = 1.125  # so many times the least load a worker may have that knows the opening


class NoWorkerError(Exception):
    """No worker serves the model; `models` are those that some worker serves."""

    def __init__(self, models: set[str]) -> None:
        self.models = models


@dataclass
class Worker:
    address: str
    models: frozenset[str]
    capacity: float  # requests that it works on at once
    in_flight: int = 0  # of ours
    avoid_until_s: float = 0.0

    def busy(self, now_s: float) -> tuple[bool, float]:
        """The least of these is to be asked next."""
        return now_s < self.avoid_until_s, self.in_flight / self.capacity


@dataclass
class Workers:
    """All workers of a controller. `list_workers` asks it for them; it may raise anything."""

    list_workers: Callable[[], Awaitable[list[dict[str, Any]]]]
    _known: dict[str, Worker] = field(default_factory=dict)
    _renewed_s: float = float("-inf")
    _renewal: asyncio.Task | None = None

    async def find(self, model: str, prompt: str = "") -> Worker:
        """Raises NoWorkerError; whatever `list_workers` raises when there never was a list."""
        if not self._serving(model):
            await asyncio.shield(self._renew())  # others wait for it too
        elif monotonic() - self._renewed_s > RENEW_S:
            self._renew()
        serving = self._serving(model)
        if not serving:
            raise NoWorkerError({name for worker in self.all() for name in worker.models})
        now_s = monotonic()
        least = min(serving, key=lambda worker: worker.busy(now_s))
        knows = serving[zlib.crc32(prompt[:OPENING_CHARS].encode()) % len(serving)]
        avoided, load = least.busy(now_s)
        return knows if prompt and knows.busy(now_s) <= (avoided, LEANING * load) else least

    def all(self) -> list[Worker]:
        return list(self._known.values())

    async def models(self) -> set[str]:
        """What is served just now."""
        await asyncio.shield(self._renew())
        return {name for worker in self.all() for name in worker.models}

    @contextmanager
    def busy_with_one_more(self, worker: Worker) -> Iterator[None]:
        worker.in_flight += 1
        try:
            yield
        finally:
            worker.in_flight -= 1

    def avoid(self, worker: Worker) -> None:
        """It could not be reached: ask others first for a while."""
        worker.avoid_until_s = monotonic() + AVOID_S

    def _serving(self, model: str) -> list[Worker]:
        return [worker for worker in self._known.values() if model in worker.models]

    def _renew(self) -> asyncio.Task:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._ask())
            self._renewal.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._renewal

    async def _ask(self) -> None:
        known = {}
        for listed in await self.list_workers():
            address, models = listed["address"], frozenset(listed["models"])
            worker = self._known.get(address) or Worker(address, models, 1.0)
            worker.models, worker.capacity = models, max(1.0, listed["capacity"])
            known[address] = worker
        self._known, self._renewed_s = known, monotonic()
