"""Promise 3: what dies of a server is restarted, so often and no oftener; without any, it fails."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from self_lengthen.errors import RunError
from self_lengthen.owned import Owned
from self_lengthen.serving import supervisor
from self_lengthen.serving.supervisor import MOST_RESTARTS, WINDOW_S, Supervised, look_after


class Process:
    """Stands in for Owned: ends when the test says so."""

    def __init__(self, name: str) -> None:
        self.name, self.log, self.status = name, Path(f"/logs/{name}.log"), None

    def poll(self) -> int | None:
        return self.status

    def stop(self) -> None:
        pass

    def log_tail(self) -> str:
        return "    the reason"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


@pytest.fixture
def supervised() -> Callable[..., Supervised]:
    def make(name: str = "worker_0", spare: bool = True) -> Supervised:
        return Supervised(Process(name), lambda: Process(name), spare)

    return make


def die(one: Supervised, clock: SimpleNamespace, *others: Supervised) -> float:
    """It ends; the seconds until it is restarted."""
    dead = one.process
    dead.status = 137
    started = clock.s
    while one.process is dead and not one.given_up:
        look_after([one, *others])
        clock.s += 0.25
        assert clock.s - started < 100
    return clock.s - 0.25 - started


def test_promise_3_a_dead_process_is_restarted_with_doubled_pauses(clock, supervised):
    worker = supervised()
    pauses = [die(worker, clock) for _ in range(MOST_RESTARTS)]
    assert pauses == [1, 2, 4, 8, 16]
    assert worker.process.poll() is None


def test_promise_3_a_worker_that_dies_too_often_is_given_up_and_the_others_go_on(clock, supervised):
    worker, other = supervised(), supervised("worker_1")
    for _ in range(MOST_RESTARTS + 1):
        die(worker, clock, other)
    assert worker.given_up and not other.given_up
    look_after([worker, other])


def test_promise_3_when_all_workers_are_given_up_the_server_has_failed(clock, supervised):
    workers = [supervised("worker_0"), supervised("worker_1")]
    for _ in range(MOST_RESTARTS + 1):
        die(workers[0], clock, workers[1])
    with pytest.raises(RunError) as failure:
        for _ in range(MOST_RESTARTS + 1):
            die(workers[1], clock, workers[0])
    assert str(failure.value) == (
        "all workers have died too often; log: /logs/worker_0.log\n    the reason"
    )


@pytest.mark.parametrize("name", ["controller", "api_server"])
def test_what_there_is_one_of_ends_the_server_when_it_dies_too_often(clock, supervised, name):
    needed, worker = supervised(name, spare=False), supervised()
    for _ in range(MOST_RESTARTS):
        die(needed, clock, worker)
    with pytest.raises(RunError, match=f"^{name} ended with status 137; log: /logs/{name}.log; "):
        die(needed, clock, worker)


def test_deaths_of_another_hour_do_not_count(clock, supervised):
    worker = supervised()
    for _ in range(3 * MOST_RESTARTS):
        assert die(worker, clock) == 1
        clock.s += WINDOW_S + 1
    assert not worker.given_up


def test_promise_3_a_killed_process_is_back_for_real(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.05)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]

    def start() -> Owned:
        return Owned("worker_0", command, tmp_path / "log", grace_s=1)

    worker = Supervised(start(), start, spare=True)
    dead = worker.process
    dead.stop()
    deadline = time.monotonic() + 20
    while worker.process is dead and time.monotonic() < deadline:
        look_after([worker])
        time.sleep(0.01)
    assert worker.process is not dead
    assert worker.process.poll() is None
    worker.process.stop()
