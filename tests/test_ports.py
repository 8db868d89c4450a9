"""Claims about the ports that servers are given: free, different, and named when they are taken."""

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from self_lengthen import ports
from self_lengthen.errors import UserError
from self_lengthen.ports import OURS, choose_ports, free_ports


def free_row(count: int) -> int:
    """The first of so many free ports in a row, below those that are drawn for others."""
    for first in random.sample(range(12000, 20000, count), 50):
        with ExitStack() as held, suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError(f"no {count} free ports in a row")


def test_no_two_services_get_the_same():
    controller, api, workers = choose_ports("127.0.0.1", 0, 0, 0, workers=40)
    assert len({controller, api, *workers}) == 42


def test_a_free_one_is_none_that_the_kernel_gives_to_connections():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    given = set(range(low, high + 1))
    if given & set(OURS):
        pytest.skip(f"this machine gives connections {low} to {high}")
    controller, api, workers = choose_ports("127.0.0.1", 0, 0, 0, workers=40)
    assert not given & {controller, api, *workers, *free_ports("127.0.0.1", 40)}


def test_a_free_one_is_none_that_is_wanted_later(monkeypatch):
    first = free_row(2)
    monkeypatch.setattr(ports, "OURS", range(first, first + 2))
    assert choose_ports("127.0.0.1", 0, first, 0, workers=0) == (first + 1, first, [])


def test_without_a_free_port_the_range_is_named(monkeypatch):
    first = free_row(1)
    monkeypatch.setattr(ports, "OURS", range(first, first + 1))
    with (
        socket.create_server(("127.0.0.1", first)),
        pytest.raises(UserError, match=f"no free port from {first} to {first}"),
    ):
        free_ports("127.0.0.1", 1)


def test_wanted_ports_are_kept_and_workers_count_up():
    free = free_row(3)
    _, api, workers = choose_ports("127.0.0.1", 0, free, free + 1, workers=2)
    assert (api, workers) == (free, [free + 1, free + 2])


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_taken_port_is_named_with_its_option(taken, position):
    wanted = [taken if number == position else 0 for number in range(3)]
    option = ("--controller_port", "--port", "--worker_port")[position]
    with pytest.raises(UserError, match=f"^{option}={taken}: cannot listen there"):
        choose_ports("127.0.0.1", *wanted, workers=1)


def test_a_port_of_a_later_worker_is_checked_as_well():
    first = free_row(2)
    with (
        socket.create_server(("127.0.0.1", first + 1)),
        pytest.raises(UserError, match=f"^--worker_port={first + 1}: "),
    ):
        choose_ports("127.0.0.1", 0, 0, first, workers=2)


def test_the_same_port_twice_is_refused():
    free = free_row(1)
    with pytest.raises(UserError, match=f"^--port={free}: cannot listen there"):
        choose_ports("127.0.0.1", free, free, 0, workers=1)


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port_at_all_is_refused(port):
    with pytest.raises(UserError, match=f"^--port={port}: .*ports 1 to 65535"):
        choose_ports("127.0.0.1", 0, port, 0, workers=1)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UserError, match="Cannot assign requested address"):
        choose_ports("192.0.2.1", 0, 0, 0, workers=1)
