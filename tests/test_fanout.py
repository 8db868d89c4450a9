"""Claims about `self_lengthen.fanout`: bounded, pulled, resumable, and honest about failures."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fakes import FakeChat, said

from self_lengthen.endpoint import EndpointError, Sampling
from self_lengthen.errors import RunError
from self_lengthen.fanout import Counts, FanOut, Outcome, Tally, summed
from self_lengthen.files import Journal, read_rows
from self_lengthen.runfolder import KeptRecords

Work = Callable[[int], Awaitable[Outcome]]


def done(unit: int, reason: str | None = None) -> Outcome:
    row = {"unit": unit} if reason is None else None
    return Outcome(f"q{unit}", row, reason, Tally(FakeChat([])))


def fan_out(folder: Path, total: int, work: Work, **options) -> Counts:
    return asyncio.run(fan_out_async(folder, total, work, **options))


async def fan_out_async(
    folder: Path, total: int, work: Work, *, concurrency: int = 4, finish_ratio: float = 1.0
) -> Counts:
    journal = Journal(folder / "journal.jsonl")
    engine = FanOut("test", total, journal, concurrency=concurrency, finish_ratio=finish_ratio)
    try:
        return await engine.run(work)
    finally:
        journal.close()


def journalled(folder: Path) -> list[int]:
    return [record["unit"] for record in read_rows(folder / "journal.jsonl")]


class Worker:
    """A unit's work: takes a moment, may fail for good; records what ran, how many at once."""

    def __init__(self, fails: Callable[[int], bool] = lambda unit: False, seed: int = 0) -> None:
        self.fails, self.rng = fails, random.Random(seed)
        self.started: list[int] = []
        self.in_flight = self.most_in_flight = 0

    async def __call__(self, unit: int) -> Outcome:
        self.started.append(unit)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
        finally:
            self.in_flight -= 1
        if self.fails(unit):
            raise EndpointError(f"HTTP 500 for unit {unit}")
        return done(unit)


class TestBounds:
    @pytest.mark.parametrize("concurrency", [1, 2, 7, 64])
    def test_as_many_units_as_allowed_are_in_flight_and_never_more(self, tmp_path, concurrency):
        worker = Worker()
        counts = fan_out(tmp_path, 200, worker, concurrency=concurrency)
        assert worker.most_in_flight == concurrency
        assert sorted(worker.started) == list(range(200))
        assert counts == Counts(total=200, finished=200, failed=0, cut=0)

    def test_units_are_pulled_and_not_queued(self, tmp_path):
        # A million units: the tasks are those in flight, beside the test's own.
        tasks = []

        async def work(unit: int) -> Outcome:
            tasks.append(len(asyncio.all_tasks()))
            await asyncio.sleep(0)
            return done(unit)

        counts = fan_out(tmp_path, 1_000_000, work, concurrency=5, finish_ratio=0.0001)
        assert max(tasks) <= 6
        # 100 are enough; what was in flight beside the last of them may finish too.
        assert 100 <= counts.finished <= len(tasks) <= 100 + 4
        assert counts.finished + counts.cut == 1_000_000

    def test_fewer_units_than_allowed_in_flight_are_no_problem(self, tmp_path):
        assert fan_out(tmp_path, 2, Worker(), concurrency=50).finished == 2
        assert fan_out(tmp_path / "none", 0, Worker()) == Counts(total=0, finished=0)

    def test_rows_come_in_the_order_of_their_units_whatever_finished_first(self, tmp_path):
        fan_out(tmp_path, 100, Worker(seed=3), concurrency=16)
        assert journalled(tmp_path) != list(range(100))
        rows = KeptRecords(tmp_path / "journal.jsonl").rows()
        assert [row["unit"] for row in rows] == list(range(100))


class TestResume:
    def test_only_what_is_missing_is_done(self, tmp_path):
        journal = Journal(tmp_path / "journal.jsonl")
        for unit in (0, 3, 4, 9):
            journal.append(done(unit, "ending" if unit == 4 else None).record(unit))
        journal.close()
        worker = Worker()
        counts = fan_out(tmp_path, 10, worker)
        assert sorted(worker.started) == [1, 2, 5, 6, 7, 8]  # a dropped unit is finished too
        assert sorted(journalled(tmp_path)) == list(range(10))
        assert counts == Counts(total=10, finished=10)

    def test_a_finished_journal_asks_for_nothing(self, tmp_path):
        fan_out(tmp_path, 10, Worker())
        worker = Worker()
        assert fan_out(tmp_path, 10, worker).finished == 10
        assert worker.started == []

    @pytest.mark.parametrize("seed", range(10))
    def test_cancelled_at_any_moment_it_resumes_with_nothing_lost_or_doubled(self, tmp_path, seed):
        rng = random.Random(seed)
        finished_before = 0
        for round_ in range(3):
            worker = Worker(seed=seed)

            async def interrupted(worker=worker) -> None:
                run = asyncio.create_task(fan_out_async(tmp_path, 300, worker, concurrency=6))
                for _ in range(rng.randrange(25)):  # turns of the event loop
                    await asyncio.sleep(0)
                run.cancel()  # what Ctrl-C does
                await asyncio.gather(run, return_exceptions=True)
                assert run.cancelled()
                assert len(asyncio.all_tasks()) == 1  # nothing goes on behind our back

            asyncio.run(interrupted())
            units = journalled(tmp_path)
            assert len(units) == len(set(units)), round_
            assert len(units) >= finished_before
            assert not set(worker.started) & set(units[:finished_before])
            finished_before = len(units)
        assert fan_out(tmp_path, 300, Worker()).finished == 300
        assert sorted(journalled(tmp_path)) == list(range(300))


class TestFinishRatio:
    def test_the_slowest_are_cut_and_counted(self, tmp_path):
        cancelled = []

        async def work(unit: int) -> Outcome:
            if unit in (1, 4, 6):
                try:
                    await asyncio.sleep(3600)
                finally:
                    await asyncio.sleep(0.01)  # as a client takes to hang up
                    cancelled.append(unit)
            return done(unit)

        async def main() -> Counts:
            counts = await fan_out_async(tmp_path, 10, work, finish_ratio=0.7)
            assert sorted(cancelled) == [1, 4, 6]  # all have ended when the run has
            return counts

        assert asyncio.run(main()) == Counts(total=10, finished=7, failed=0, cut=3)
        assert sorted(journalled(tmp_path)) == [0, 2, 3, 5, 7, 8, 9]

    def test_failed_units_are_not_counted_as_cut(self, tmp_path):
        # 40 units, 0.9 of them = 36 are enough; 2 fail (5 %), 2 are left.
        counts = fan_out(
            tmp_path, 40, Worker(lambda unit: unit < 2), concurrency=1, finish_ratio=0.9
        )
        assert counts == Counts(total=40, finished=36, failed=2, cut=2)

    def test_failures_beyond_five_percent_do_not_matter_when_enough_have_finished(self, tmp_path):
        # 8 % fail, but 90 of 100 were asked for; with all asked for, 8 % are too many.
        bad = set(range(0, 80, 10)).__contains__
        counts = fan_out(tmp_path, 100, Worker(bad), concurrency=1, finish_ratio=0.9)
        assert counts == Counts(total=100, finished=90, failed=8, cut=2)

    def test_a_resumed_run_that_has_enough_does_no_more(self, tmp_path):
        fan_out(tmp_path, 10, Worker(), concurrency=1, finish_ratio=0.7)
        worker = Worker()
        assert fan_out(tmp_path, 10, worker, finish_ratio=0.7).cut == 3
        assert worker.started == []


class TestFailures:
    def test_failed_units_are_not_in_the_journal_and_are_tried_again(self, tmp_path):
        bad = {7, 50, 99}
        counts = fan_out(tmp_path, 100, Worker(bad.__contains__))
        assert counts == Counts(total=100, finished=97, failed=3)
        assert set(journalled(tmp_path)) == set(range(100)) - bad
        worker = Worker()
        assert fan_out(tmp_path, 100, worker) == Counts(total=100, finished=100)
        assert sorted(worker.started) == [7, 50, 99]

    def test_eight_failures_in_a_row_stop_the_run_with_the_first_error(self, tmp_path):
        worker = Worker(lambda unit: unit >= 20)
        with pytest.raises(RunError, match="8 units failed in a row: HTTP 500 for unit 20"):
            fan_out(tmp_path, 10_000, worker, concurrency=1)
        assert worker.started == list(range(28))
        assert journalled(tmp_path) == list(range(20))

    def test_with_many_in_flight_a_dead_server_stops_the_run_as_early(self, tmp_path):
        worker = Worker(lambda unit: True)
        with pytest.raises(RunError, match="units failed in a row"):
            fan_out(tmp_path, 10_000, worker, concurrency=64)
        assert len(worker.started) < 200
        assert worker.in_flight == 0

    def test_a_success_in_between_starts_the_count_anew(self, tmp_path):
        # 7 failures, a success, 7 failures: 14 of 300 are 4.7 %
        bad = {*range(10, 17), *range(18, 25)}
        counts = fan_out(tmp_path, 300, Worker(bad.__contains__), concurrency=1)
        assert (counts.finished, counts.failed) == (286, 14)

    def test_five_percent_may_fail_and_no_more(self, tmp_path):
        five = {10, 30, 50, 70, 90}
        counts = fan_out(tmp_path / "five", 100, Worker(five.__contains__))
        assert (counts.finished, counts.failed) == (95, 5)
        first = "6 of 100 units failed; the same command tries them again: HTTP 500 for unit 3"
        with pytest.raises(RunError, match=first):
            fan_out(tmp_path / "six", 100, Worker({3, *five}.__contains__), concurrency=1)
        assert len(journalled(tmp_path / "six")) == 94

    def test_an_unexpected_error_ends_the_run_and_is_not_hidden(self, tmp_path):
        async def work(unit: int) -> Outcome:
            if unit == 5:
                raise KeyError("a mistake in a step")
            return done(unit)

        with pytest.raises(KeyError, match="a mistake"):
            fan_out(tmp_path, 10, work)


class TestTally:
    def test_it_adds_up_the_tokens_of_all_calls_of_a_unit(self):
        tally = Tally(FakeChat([said("two words"), said("and three more")]))

        async def main() -> None:
            for seed in (1, 2):
                await tally.chat("base", "Write.", Sampling(), seed=seed)

        asyncio.run(main())
        assert (tally.prompt_tokens, tally.completion_tokens) == (14, 5)  # 2 x 7, 2 + 3

    def test_sums_count_attempts_by_reason_and_units_by_reason(self):
        def record(kept: bool, reason: str | None, **rejected: int) -> dict:
            tally = Tally(FakeChat([]), int(kept), Counter(rejected), 10, 5)
            return Outcome("q", {} if kept else None, reason, tally).record(0)

        records = [
            record(True, None),
            record(True, None, ending=2),
            record(False, "repetition", ending=1, repetition=19),
        ]
        # attempts: 2 accepted + 3 ending + 19 repetition = 24
        assert summed(iter(records)) == {
            "attempts": {
                "total": 24,
                "accepted": 2,
                "rejected": {"ending": 3, "repetition": 19},
            },
            "tokens": {"prompt": 30, "completion": 15},
            "dropped": {"repetition": 1},
        }
