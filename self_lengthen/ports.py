"""TCP ports for processes that listen only seconds later.

A model takes half a minute to load, and meanwhile any connection of any process may be given a port
of the range from which the kernel chooses (Linux: 32768 to 60999). So we choose below it.
"""

import errno
import random
import socket
from contextlib import ExitStack

from self_lengthen.errors import UserError

OURS = range(20_000, 29_000)  # clear of Ray's, up to 19999, and torch's, 29400 and 29500
_choice = random.SystemRandom()  # two runs of one seed must not choose the same


def choose_ports(
    host: str, controller_port: int, port: int, worker_port: int, workers: int
) -> tuple[int, int, list[int]]:
    """The wanted ports, free ones for 0, no two the same. Raises UserError when one is taken."""
    wanted = [("--controller_port", controller_port), ("--port", port)]
    wanted += [("--worker_port", worker_port and worker_port + n) for n in range(workers)]
    with ExitStack() as held:
        for option, number in wanted:
            if number:
                _hold(held.enter_context(socket.socket()), host, option, number)
        chosen = [number or _hold_free(held, host) for _, number in wanted]
    return chosen[0], chosen[1], chosen[2:]


def free_ports(host: str, count: int) -> list[int]:
    """No two the same. Raises UserError when nothing can listen on `host`."""
    with ExitStack() as held:
        return [_hold_free(held, host) for _ in range(count)]


def _hold(probe: socket.socket, host: str, option: str, wanted: int) -> None:
    try:
        _listen(probe, host, wanted)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", "there are ports 1 to 65535")
        raise UserError(
            f"{option}={wanted}: cannot listen there ({reason}); give another port, or none for a "
            "free one"
        ) from error


def _hold_free(held: ExitStack, host: str) -> int:
    first = _choice.randrange(len(OURS))
    for port in (*OURS[first:], *OURS[:first]):
        probe = held.enter_context(socket.socket())
        try:
            _listen(probe, host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"{host}: cannot listen there ({error.strerror})") from error
        else:
            return port
    raise UserError(f"{host}: no free port from {OURS.start} to {OURS.stop - 1}")


def _listen(probe: socket.socket, host: str, port: int) -> None:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind((host, port))
    probe.listen()
