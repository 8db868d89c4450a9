"""Claims about how many units are in flight: `self_lengthen.pace`, `serving.load`, the fan-out.

`python -m pytest tests/test_pace.py`
"""

import asyncio
from types import SimpleNamespace

import pytest
from fakes import FakeChat
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen import fanout
from self_lengthen.fanout import Counts, FanOut, Outcome, Tally
from self_lengthen.files import Journal
from self_lengthen.pace import START, Load, next_target
from self_lengthen.serving.load import CPU_NEARLY_FREE, EngineLoad, summed


def load(running: int = 0, waiting: int = 0, capacity: int = 256, workers: int = 1) -> Load:
    return Load(workers, capacity, capacity, running, waiting, 1 - min(1.0, running / capacity))


class TestNextTarget:
    def test_without_a_queue_it_grows_by_a_quarter(self):
        assert next_target(64, load(64)) == 80
        assert next_target(2, load(2)) == 3

    def test_it_ends_a_sixteenth_above_what_the_batches_hold(self):
        # 256 / 16 = 16 are to wait
        assert next_target(300, load(256, 10)) == 272
        assert next_target(1000, load(256, 10)) == 272

    def test_a_queue_as_it_should_be_changes_nothing(self):
        assert next_target(200, load(184, 16)) == 200
        assert next_target(200, load(184, 32)) == 200

    def test_a_long_queue_is_cut_at_once(self):
        # The KV cache holds 100 texts of this length.
        assert next_target(272, load(100, 172)) == 116

    def test_every_worker_has_something_waiting(self):
        assert next_target(70, load(60, 7, capacity=64, workers=8)) == 72
        assert next_target(70, load(60, 8, capacity=64, workers=8)) == 70

    @given(st.integers(1, 5000), st.integers(0, 600), st.integers(0, 5000), st.integers(1, 64))
    def test_it_stays_within_bounds(self, target, running, waiting, workers):
        target = next_target(target, load(running, waiting, 256 * workers, workers))
        assert 1 <= target <= 256 * workers + max(workers, 16 * workers)

    def test_no_worker_at_all_leaves_one_unit_that_asks(self):
        assert next_target(64, Load(0, 0, 0, 0, 0, 1.0)) == 1

    @pytest.mark.parametrize("holds", [3, 40, 100, 256])
    def test_it_settles_where_the_engine_is_full_and_little_waits(self, holds):
        """`holds`: texts in the engine's KV cache, or in its batch."""
        target = START
        for _ in range(40):
            target = next_target(target, load(min(target, holds), max(0, target - holds)))
        assert holds <= target <= holds + 2 * 16 + 4


class TestFanOut:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(fanout, "PACE_S", 0.001)

    @staticmethod
    def run(tmp_path, total: int, concurrency: int, loads) -> tuple[Counts, list[int]]:
        in_flight, seen = [0], []

        async def work(unit: int) -> Outcome:
            in_flight[0] += 1
            seen.append(in_flight[0])
            await asyncio.sleep(0.002)
            in_flight[0] -= 1
            return Outcome(f"q{unit}", {}, None, Tally(FakeChat([])))

        async def main() -> Counts:
            journal = Journal(tmp_path / "journal.jsonl")
            engine = FanOut("test", total, journal, concurrency=concurrency)
            try:
                return await engine.run(work, loads)
            finally:
                journal.close()

        return asyncio.run(main()), seen

    def test_more_units_start_while_the_engines_have_room(self, tmp_path):
        async def idle() -> Load:
            return load(0, 0, capacity=2048)

        counts, seen = self.run(tmp_path, 6000, 0, idle)
        assert counts.finished == 6000
        assert max(seen) == 2048 + 2048 // 16
        assert counts.idle_share == 1.0

    def test_fewer_units_start_while_many_wait(self, tmp_path):
        async def full() -> Load:
            return load(running=4, waiting=60)

        counts, seen = self.run(tmp_path, 2000, 0, full)
        assert (counts.finished, counts.cut) == (2000, 0)
        assert seen[-1] <= 4 + 16
        assert max(seen) <= 256 + 16

    def test_a_number_that_was_asked_for_stays(self, tmp_path):
        async def idle() -> Load:
            return load(16, capacity=64)

        counts, seen = self.run(tmp_path, 300, 5, idle)
        assert max(seen) == 5
        assert counts.idle_share == 0.75

    def test_a_server_that_does_not_tell_gets_the_number_of_the_start(self, tmp_path):
        async def silent() -> None:
            return None

        counts, seen = self.run(tmp_path, 300, 0, silent)
        assert max(seen) == START
        assert counts.idle_share is None


class TestEngineLoad:
    @staticmethod
    def of_engine(running: int, waiting: int, device: str = "cuda") -> EngineLoad:
        config = SimpleNamespace(
            device_config=SimpleNamespace(device_type=device),
            scheduler_config=SimpleNamespace(max_num_seqs=128),
            cache_config=SimpleNamespace(num_gpu_blocks=None, block_size=16),
        )
        told = EngineLoad()
        assert told.attach(config, 0) is told
        config.cache_config.num_gpu_blocks = 1000
        told.log_engine_initialized()
        stats = {"num_running_reqs": running, "num_waiting_reqs": waiting}
        told.record(SimpleNamespace(**stats, kv_cache_usage=0.25), None, engine_idx=0)
        told.record(None, None)
        return told

    def test_the_status_is_that_after_the_last_step(self):
        assert self.of_engine(100, 7).status(requests=107) == {
            "running": 100,
            "waiting": 7,
            "max_num_seqs": 128,
            "nearly_free": 128,
            "kv_tokens": 16_000,
            "kv_usage": 0.25,
        }

    def test_on_a_cpu_few_requests_are_nearly_free(self):
        assert self.of_engine(1, 0, "cpu").status(1)["nearly_free"] == CPU_NEARLY_FREE

    def test_without_a_request_nothing_runs_whatever_the_last_step_said(self):
        status = self.of_engine(1, 0).status(requests=0)
        assert (status["running"], status["waiting"], status["kv_usage"]) == (0, 0, 0.0)

    def test_the_load_of_all_workers_is_their_sum_and_their_mean_idleness(self):
        statuses = [
            self.of_engine(128, 0).status(500),
            self.of_engine(32, 0).status(500),  # 3 of 4 places are free
            self.of_engine(32, 5).status(500),  # its cache is full
        ]
        assert summed(statuses) == Load(3, 384, 384, 192, 5, 0.25)
        assert summed([]) == Load(0, 0, 0, 0, 0, 1.0)
