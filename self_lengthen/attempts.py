"""Attempts at one unit in their order, some of them ahead of their turn where places are free.

At the end of a step a few stubborn units are left, with up to 20 attempts of many minutes each, one
after another, and the engines' batches stand empty. So of a unit that has been rejected n times up
to n attempts run at once, as far as there are places that no unit is left to take and that slow
nothing else down. The earliest accepted one counts, as if no later one had been made: neither what
is accepted changes by it nor how often a unit was rejected. It costs the tokens of the attempts
that do not count.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from self_lengthen.fanout import Tally
from self_lengthen.files import Row

ATTEMPTS = 20  # at a response or an extension; paper's release; --attempts

Tried = tuple[Row | None, str | None]  # the row, or None and why the attempt is rejected


async def first_accepted(
    tally: Tally, attempt: Callable[[int], Awaitable[Tried]], most: int
) -> Tried:
    """The earliest accepted of the attempts 1 to `most`; where there is none, the last one.

    `attempt(number)` must not depend on other attempts. What it raises is raised in its turn.
    """
    made, tried = 0, (None, None)
    tasks: deque[asyncio.Task[Tried]] = deque()  # in their order; the first one's turn it is
    try:
        while True:
            running = sum(not task.done() for task in tasks)
            at_once = 1 if any(map(_ends_the_search, tasks)) else max(1, tally.rejected.total())
            while made < most and running < at_once and (not running or tally.places.take_place()):
                made += 1
                task = asyncio.create_task(attempt(made))
                if running:
                    task.add_done_callback(lambda _: tally.places.give_back_place())
                tasks.append(task)
                running += 1
            if not tasks:
                return tried
            await asyncio.wait([t for t in tasks if not t.done()], return_when="FIRST_COMPLETED")
            while tasks and tasks[0].done():
                tried = tasks.popleft().result()
                if tried[0] is not None:
                    tally.accepted += 1
                    return tried
                tally.rejected[str(tried[1])] += 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ends_the_search(task: asyncio.Task[Tried]) -> bool:
    return task.done() and (task.exception() is not None or task.result()[0] is not None)
