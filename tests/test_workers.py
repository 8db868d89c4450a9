"""Claims about `self_lengthen.serving.workers`: which worker a request goes to."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from self_lengthen.serving import workers as module
from self_lengthen.serving.workers import NoWorkerError, Workers


def row(address: str, capacity: float = 4, *models: str) -> dict[str, Any]:
    return {"address": address, "models": list(models or ("base",)), "capacity": capacity}


class Controller:
    """Answers with its rows, or fails; counts."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows, self.asked, self.broken = list(rows), 0, False

    async def __call__(self) -> list[dict[str, Any]]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.broken:
            raise ConnectionError("the controller is gone")
        return self.rows


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time on by so many seconds; it stands still otherwise."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def run(work: Awaitable) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


async def send(workers: Workers, count: int, model: str = "base", prompt: str = "") -> Counter[str]:
    """So many requests that do not end; how many each worker got."""
    for _ in range(count):
        worker = await workers.find(model, prompt)
        worker.in_flight += 1
    return Counter({worker.address: worker.in_flight for worker in workers.all()})


def test_requests_are_spread_by_what_each_worker_can_do_at_once(clock):
    workers = Workers(Controller(row("a", 8), row("b", 4), row("c", 4)))
    assert run(send(workers, 16)) == {"a": 8, "b": 4, "c": 4}


def test_only_workers_that_serve_the_model_are_asked(clock):
    workers = Workers(Controller(row("a"), row("b", 4, "base", "extender-iter1")))
    assert run(send(workers, 3, "extender-iter1")) == {"a": 0, "b": 3}


async def openings_by_worker(workers: Workers, requests: int) -> dict[str, set[str]]:
    """Which drafts each worker saw, of 20 that are asked about in turn and do not end."""
    drafts = [f"Lengthen this. {number:2000d}" for number in range(20)]
    seen: dict[str, set[str]] = {}
    for number in range(requests):
        draft = drafts[number % len(drafts)]
        worker = await workers.find("base", f"{draft} and the half of it that differs {number}")
        worker.in_flight += 1
        seen.setdefault(worker.address, set()).add(draft)
    return seen


def test_prompts_that_open_alike_go_to_one_worker_where_it_has_room(clock):
    async def many(workers: Workers) -> list[set[str]]:
        await send(workers, 4000)
        return list((await openings_by_worker(workers, 200)).values())

    seen = run(many(Workers(Controller(*(row(name) for name in "abcd")))))
    assert sum(map(len, seen)) == 20


def test_no_worker_has_an_eighth_more_to_do_for_the_sake_of_its_cache(clock):
    workers = Workers(Controller(*(row(name) for name in "abcd")))
    *others, most = sorted(run(send(workers, 400, prompt="the same prompt")).values())
    assert max(others) - min(others) <= 1
    assert min(others) < most <= 1.125 * min(others) + 1


def test_a_worker_that_could_not_be_reached_loses_its_prompts_for_a_while(clock):
    async def unreachable(workers: Workers) -> list[str]:
        first = await workers.find("base", "a prompt")
        workers.avoid(first)
        second = await workers.find("base", "a prompt")
        clock(module.AVOID_S)
        return [first.address, second.address, (await workers.find("base", "a prompt")).address]

    first, second, third = run(unreachable(Workers(Controller(row("a"), row("b")))))
    assert first == third != second


def test_a_finished_request_makes_room(clock):
    async def one_after_the_other(workers: Workers) -> set[str]:
        seen = set()
        await send(workers, 1)
        for _ in range(5):
            worker = await workers.find("base")
            with workers.busy_with_one_more(worker):
                seen.add(worker.address)
        return seen

    assert run(one_after_the_other(Workers(Controller(row("a"), row("b"))))) == {"b"}


def test_a_request_that_fails_makes_room_too(clock):
    async def fail(workers: Workers) -> int:
        worker = await workers.find("base")
        with pytest.raises(ValueError), workers.busy_with_one_more(worker):
            raise ValueError
        return worker.in_flight

    assert run(fail(Workers(Controller(row("a"))))) == 0


def test_a_worker_that_could_not_be_reached_is_asked_last_for_ten_seconds(clock):
    async def unreachable(workers: Workers) -> list[str]:
        worker = await workers.find("base")
        workers.avoid(worker)
        asked = [worker.address, (await workers.find("base")).address]
        clock(module.AVOID_S)
        return [*asked, (await workers.find("base")).address]

    assert run(unreachable(Workers(Controller(row("a"), row("b"))))) == ["a", "b", "a"]
    assert run(unreachable(Workers(Controller(row("a"))))) == ["a", "a", "a"]  # there is no other


def test_the_list_is_asked_for_once_a_second_however_many_ask(clock):
    controller = Controller(row("a"))
    workers = Workers(controller)

    async def many() -> None:
        await asyncio.gather(*(workers.find("base") for _ in range(50)))

    async def main() -> list[int]:
        asked = []
        for _ in range(3):
            await many()
            await asyncio.sleep(0.01)
            asked.append(controller.asked)
            clock(module.RENEW_S + 0.1)
        return asked

    assert run(main()) == [1, 2, 3]


def test_what_is_in_flight_is_remembered_over_a_renewal_and_gone_workers_are_forgotten(clock):
    controller = Controller(row("a"), row("b"))
    workers = Workers(controller)

    async def main() -> Counter[str]:
        await send(workers, 4)
        controller.rows = [row("b", 4), row("c", 4)]
        await workers.models()
        return await send(workers, 2)

    assert run(main()) == {"b": 2, "c": 2}


def test_with_the_controller_gone_the_last_list_serves(clock):
    controller = Controller(row("a"))
    workers = Workers(controller)

    async def main() -> str:
        await workers.find("base")
        controller.broken = True
        clock(60)
        await workers.find("base")
        await asyncio.sleep(0.01)
        return (await workers.find("base")).address

    assert run(main()) == "a"
    assert controller.asked >= 2


def test_without_any_list_the_controllers_failure_is_the_answer(clock):
    controller = Controller()
    controller.broken = True
    with pytest.raises(ConnectionError):
        run(Workers(controller).find("base"))


def test_a_model_that_nobody_serves_names_those_that_are_served(clock):
    workers = Workers(Controller(row("a", 4, "base", "odd")))
    with pytest.raises(NoWorkerError) as error:
        run(workers.find("other"))
    assert error.value.models == {"base", "odd"}
