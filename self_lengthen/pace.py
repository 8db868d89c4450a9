"""How many units are in flight: as many as the engines can work on, and a few that wait.

    target = full_target(load)              when a step begins
    target = next_target(target, load)      every PACE_S seconds from then on

A queue that is never empty keeps an engine's batch full; a long one only makes units start before
they are worked on. How many an engine can take follows from its KV cache and from how long the
texts are just now, so its queue says more than any calculation.
"""

from dataclasses import dataclass

PACE_S = 2.0
START = 64  # units in flight until a server tells its load, and with one that does not
WAITING_PART = 16  # so small a part of the capacity, at least one a worker, is to wait


@dataclass(frozen=True)
class Load:
    """What the engines of a server do at one moment, all workers together."""

    workers: int
    capacity: int  # requests in their batches at most
    nearly_free: int  # of these as many as do not slow each other down much
    running: int
    waiting: int
    idle_share: float  # of their batches, mean over the workers; none of one with a queue


def full_target(load: Load) -> int:
    """Units that fill all batches, and those that are to wait; where a step begins."""
    return max(1, load.capacity + _to_wait(load))


def next_target(target: int, load: Load) -> int:
    """The number of units to have in flight from now on."""
    if load.waiting > 2 * _to_wait(load):
        target = load.running + _to_wait(load)
    elif load.waiting < _to_wait(load):
        target += max(1, target // 4)
    return max(1, min(target, full_target(load)))


def _to_wait(load: Load) -> int:
    return max(load.workers, load.capacity // WAITING_PART)
