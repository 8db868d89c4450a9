"""Claims about `self_lengthen.attempts`: the same attempts count, however many run at once."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from fakes import Call, FakeChat, FakeModel, prose
from hypothesis import given
from hypothesis import strategies as st
from test_steps import (  # noqa: F401
    give,
    initial_row,
    instruction_row,
    perform,
    rows_of,
    summary_of,
)

from self_lengthen import fanout
from self_lengthen.attempts import Tried, first_accepted
from self_lengthen.endpoint import EndpointError
from self_lengthen.fanout import Outcome, Tally
from self_lengthen.pace import Load
from self_lengthen.runfolder import INITIAL, INSTRUCTIONS, StepFolder
from self_lengthen.steps import extend_responses, initial_responses
from self_lengthen.steps.common import Asking, ask_all

MOST = 20
ACCEPTED, FAILED = "accepted", "failed"  # what becomes of an attempt; all else is a reason
FATES = st.lists(st.sampled_from([ACCEPTED, FAILED, *3 * ["ending", "repetition"]]), min_size=MOST)
DURATIONS = st.lists(st.integers(1, 9), min_size=MOST, max_size=MOST)


@dataclass
class Places:
    """So many places; how many are taken."""

    free: int
    taken: int = 0

    def take_place(self) -> bool:
        if self.taken == self.free:
            return False
        self.taken += 1
        return True

    def give_back_place(self) -> None:
        self.taken -= 1


@dataclass
class Unit:
    """Its attempts end in `fates` after so many turns of the event loop."""

    fates: list[str]
    turns: list[int]
    begun: list[int] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0

    async def attempt(self, number: int) -> Tried:
        self.begun.append(number)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            for _ in range(self.turns[number - 1]):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        fate = self.fates[number - 1]
        if fate == FAILED:
            raise EndpointError(f"attempt {number}")
        return ({"attempt": number}, None) if fate == ACCEPTED else (None, fate)


def search(unit: Unit, places: Places) -> tuple[Tried | str, Tally]:
    """What comes of it, an error as its text; and the tally."""
    tally = Tally(FakeChat([]), places=places)

    async def main() -> Tried | str:
        try:
            found = await first_accepted(tally, unit.attempt, MOST)
        except EndpointError as error:
            found = str(error)
        assert unit.running == 0, "an attempt runs on"
        await asyncio.sleep(0)
        assert places.taken == 0
        return found

    return asyncio.run(main()), tally


class TestFirstAccepted:
    @given(FATES, DURATIONS, st.integers(0, 30))
    def test_places_change_nothing_but_the_time(self, fates, turns, free):
        alone, tally = search(Unit(fates, turns), Places(0))
        unit, places = Unit(fates, turns), Places(free)
        found, tally_ahead = search(unit, places)
        assert found == alone
        assert (tally_ahead.accepted, tally_ahead.rejected) == (tally.accepted, tally.rejected)
        assert unit.begun == list(range(1, len(unit.begun) + 1))
        assert unit.most_at_once <= min(1 + free, max(1, tally.rejected.total()))

    def test_one_at_a_time_without_places(self):
        unit = Unit(["ending"] * 4 + [ACCEPTED] * 16, [3] * MOST)
        assert search(unit, Places(0))[0] == ({"attempt": 5}, None)
        assert unit.most_at_once == 1
        assert unit.begun == [1, 2, 3, 4, 5]

    def test_as_many_at_once_as_were_rejected(self):
        # After 1, 2, 4, 8 and 16 attempts of one length: rejected so many, so many more begin.
        unit = Unit(["ending"] * MOST, [5] * MOST)
        found, tally = search(unit, Places(99))
        assert found == (None, "ending")
        assert tally.rejected == Counter(ending=MOST)
        assert unit.most_at_once == 8

    def test_none_begins_behind_one_that_passed(self):
        # The fourth passes at once, while the third takes its time.
        unit = Unit(["ending", "ending", "ending", ACCEPTED, *["ending"] * 16], [1, 1, 90, 1] * 5)
        assert search(unit, Places(99))[0] == ({"attempt": 4}, None)
        assert unit.begun == [1, 2, 3, 4]

    def test_the_earlier_of_two_that_pass_counts(self):
        unit = Unit(["ending", "ending", ACCEPTED, ACCEPTED, *["ending"] * 16], [1, 1, 90, 1] * 5)
        assert search(unit, Places(99))[0] == ({"attempt": 3}, None)

    def test_a_cancelled_unit_leaves_no_attempt_and_no_place(self):
        unit, places = Unit(["ending"] * MOST, [1, 1, *[10**6] * 18]), Places(99)

        async def main() -> None:
            tally = Tally(FakeChat([]), places=places)
            task = asyncio.create_task(first_accepted(tally, unit.attempt, MOST))
            while unit.running < 2:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert unit.running == 0
            await asyncio.sleep(0)
            assert places.taken == 0

        asyncio.run(main())


class TestPlacesOfAFanOut:
    """16 units of which one is stubborn; as many in flight as the engines hold, and one more."""

    UNITS = 16

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(fanout, "PACE_S", 0.001)

    def run(
        self, tmp_path, *, concurrency: int, capacity: int, nearly_free: int = 99
    ) -> tuple[int, bool]:
        """The most attempts of the stubborn unit at once; whether one was ahead too early."""
        # Rejected twice before the last units begin; its third attempt ends after they have ended.
        stubborn = Unit(["ending"] * MOST, [400, 400, *[3000] * (MOST - 2)])
        begun, early = [0], [False]

        async def load() -> Load:
            return Load(1, capacity, nearly_free, capacity, 1, 0.0)

        async def work(tally: Tally, unit: int) -> Outcome:
            begun[0] += 1
            if unit:
                for _ in range(1000):
                    await asyncio.sleep(0)
                    early[0] |= stubborn.running > 1 and begun[0] < self.UNITS
                return Outcome(f"q{unit}", {}, None, tally)
            return Outcome("q0", *await first_accepted(tally, stubborn.attempt, MOST), tally)

        chat = FakeChat([])
        chat.load = load
        counts, _ = ask_all(
            Asking("test", StepFolder(tmp_path), chat, concurrency), self.UNITS, work
        )
        assert counts.finished == self.UNITS
        return stubborn.most_at_once, early[0]

    def test_a_stubborn_unit_gets_the_places_that_no_unit_is_left_to_take(self, tmp_path):
        assert self.run(tmp_path, concurrency=0, capacity=10) == (8, False)

    def test_no_more_than_there_are(self, tmp_path):
        assert self.run(tmp_path, concurrency=0, capacity=3) == (4, False)

    def test_no_more_than_leave_the_others_their_speed(self, tmp_path):
        assert self.run(tmp_path, concurrency=0, capacity=10, nearly_free=3) == (3, False)

    def test_none_where_the_number_in_flight_was_asked_for(self, tmp_path):
        assert self.run(tmp_path, concurrency=10, capacity=10) == (1, False)


@pytest.mark.parametrize(
    ("module", "taken", "written"),
    [
        (initial_responses, INSTRUCTIONS, [instruction_row(n) for n in range(8)]),
        (extend_responses, INITIAL, [initial_row(n, prose(10, 100 * n)) for n in range(8)]),
    ],
)
def test_steps_accept_the_same_texts_with_attempts_ahead(
    new_run,
    perform,  # noqa: F811
    llama,
    monkeypatch,
    module,
    taken,
    written,
):
    """Four of five replies have no end, so that many units are stubborn and some are dropped."""
    monkeypatch.setattr(fanout, "PACE_S", 0.001)
    model, asked, rows, attempts = FakeModel(llama), [], [], []

    def reply(call: Call) -> str:
        return model(call) if call.seed % 5 == 0 else "it has no end"

    async def idle() -> Load:
        return Load(1, 64, 64, running=1, waiting=0, idle_share=1 - 1 / 64)

    for concurrency in (1, 0):
        folder = new_run(llama, str(concurrency))
        give(folder, taken, written)
        chat = FakeChat(reply, pause=lambda call: call.seed % 7 / 1000)
        chat.load = idle
        perform(module, folder, chat, concurrency=concurrency)
        asked.append(len(chat.calls))
        rows.append(rows_of(folder, module.STEP))
        attempts.append(summary_of(folder, module.STEP)["attempts"])
    assert rows[0] == rows[1] != []
    assert attempts[0] == attempts[1]
    assert asked[0] < asked[1] < 3 * asked[0]
