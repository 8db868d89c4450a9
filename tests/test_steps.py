"""Claims about the numbered steps: what they ask and keep, and that every unit is accounted for."""

import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from fakes import Call, FakeChat, FakeModel, FakeServer, Request, Turn, article, prose, said

from self_lengthen import fanout
from self_lengthen.endpoint import STOP_STRINGS, ContextOverflowError, EndpointError, Sampling
from self_lengthen.errors import RunError, UserError
from self_lengthen.extension import call_seed
from self_lengthen.family import REPO_ROOT, ModelFamily, load_family
from self_lengthen.files import read_json, read_rows, write_rows
from self_lengthen.pace import Load
from self_lengthen.runfolder import EXTENDED, FILTERED, INITIAL, INSTRUCTIONS, SFT, RunFolder
from self_lengthen.seeds import read_seeds
from self_lengthen.steps import (
    common,
    extend_responses,
    filter_responses,
    initial_responses,
    make_sft_data,
    self_instruct,
)
from self_lengthen.training.chat import load_tokenizer

ASKING_STEPS = (self_instruct, initial_responses, extend_responses)
NOTHING = {"dropped": {}, "failed": 0, "cut": 0}


@pytest.fixture
def perform(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs one step of an iteration with a fake in the server's place."""

    def run(
        module: ModuleType,
        folder: RunFolder,
        chat: FakeChat | None = None,
        *,
        iteration: int = 1,
        concurrency: int = 8,
    ) -> None:
        monkeypatch.setattr(common, "Endpoint", lambda url, key: chat)
        family = load_family(folder.options["family"])
        url = "http://fake/v1" if chat else ""
        module.make(common.StepRun(module.STEP, family, folder, iteration, url, concurrency))

    return run


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Step 4 without the model's own: an empty system prompt. Notes what was to be verified."""
    verified: list[str] = []
    monkeypatch.setattr(make_sft_data, "load_tokenizer", lambda *_: None)
    monkeypatch.setattr(make_sft_data, "default_system_prompt", lambda *_: "")
    monkeypatch.setattr(
        make_sft_data, "verify_template", lambda family, model, *_: verified.append(model)
    )
    return verified


def rows_of(folder: RunFolder, step: str, iteration: int = 1) -> list[dict]:
    return list(read_rows(folder.step(iteration, step).data))


def summary_of(folder: RunFolder, step: str, iteration: int = 1) -> dict:
    return read_json(folder.step(iteration, step).path / "summary.json")


def give(folder: RunFolder, step: str, rows: list[dict], iteration: int = 1) -> None:
    """A finished step with these rows."""
    units = {"in": len(rows), "kept": len(rows), **NOTHING}
    folder.step(iteration, step).finish(iter(rows), {"units": units})


def instruction_row(number: int, text: str = "", iteration: int = 1) -> dict:
    text = text or f"Write a long text, number {number}."
    return {"id": f"i{iteration}-q{number:06d}", "instruction": text, "words": 6}


def initial_row(number: int, response: str) -> dict:
    asked = instruction_row(number)
    return {
        "id": f"{asked['id']}-r0",
        "instruction_id": asked["id"],
        "instruction": asked["instruction"],
        "response": response,
        "words": len(response.split()),
    }


def extended_row(number: int, initial: str, response: str) -> dict:
    row = initial_row(number, initial)
    words = {"initial_words": row["words"], "words": len(response.split())}
    return {**row, "id": f"{row['id']}-e0", "initial": initial, "response": response, **words}


def seed_file(path: Path, *prompts: str) -> str:
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


class Writer:
    """Answers step 0: instructions from a queue (else numbered ones), one verdict for all."""

    def __init__(
        self, family: ModelFamily, *instructions: object, verdict: str | None = None
    ) -> None:
        self.queue = list(instructions)
        self.verdict = family.judge_yes[0] if verdict is None else verdict
        self.numbers = 0

    def __call__(self, call: Call):
        if not call.opened_with:
            return self.verdict
        if self.queue:
            return self.queue.pop(0)
        self.numbers += 1
        return f"Please write new text number {self.numbers}."


def writing(chat: FakeChat) -> list[Call]:
    return [call for call in chat.calls if call.opened_with]


def judging(chat: FakeChat) -> list[Call]:
    return [call for call in chat.calls if not call.opened_with]


class TestStep0Asks:
    def test_two_different_seeds_open_the_list_before_the_label_of_the_third(
        self, new_run, perform, family
    ):
        folder, chat = new_run(family), FakeChat(Writer(family))
        perform(self_instruct, folder, chat)
        one, two, three = {
            "zh": ("指令1：", "\n指令2：", "\n指令3："),
            "en": ("Instruction 1: ", "\nInstruction 2: ", "\nInstruction 3:"),
        }[family.language]
        rows = {row["seed"]: row for row in rows_of(folder, INSTRUCTIONS)}
        seeds = set(read_seeds(family.seeds))
        assert len(writing(chat)) == 4
        for call in writing(chat):
            first, second = rows[call.seed]["examples"]
            assert call.opened_with == one + first + two + second + three  # no space at the end
            assert first != second
            assert call.user == family.prompt("self_instruct")
        assert {example for row in rows.values() for example in row["examples"]} <= seeds | {
            row["instruction"] for row in rows.values()
        }

    def test_a_seed_that_stands_twice_in_the_file_is_never_shown_beside_itself(
        self, new_run, perform, llama, tmp_path
    ):
        seeds = seed_file(tmp_path / "seeds.jsonl", "Write one.", "Write one.", "Write two.")
        folder = new_run(llama, seeds=seeds, instruct_count=20)
        perform(self_instruct, folder, FakeChat(Writer(llama)))
        for row in rows_of(folder, INSTRUCTIONS):
            assert sorted(row["examples"]) == ["Write one.", "Write two."]

    def test_the_list_stops_at_its_next_item_and_the_judge_does_not(self, new_run, perform, family):
        folder, chat = new_run(family, max_tokens=123), FakeChat(Writer(family))
        perform(self_instruct, folder, chat)
        stop = {"zh": "\n指令4", "en": "\nInstruction 4"}[family.language]
        assert {call.sampling for call in writing(chat)} == {
            Sampling(max_tokens=123, stop=(*STOP_STRINGS, stop))
        }
        assert {call.sampling for call in judging(chat)} == {Sampling(max_tokens=123)}

    def test_the_judge_is_asked_about_each_instruction(self, new_run, perform, family):
        folder, chat = new_run(family), FakeChat(Writer(family))
        perform(self_instruct, folder, chat)
        texts = [row["instruction"] for row in rows_of(folder, INSTRUCTIONS)]
        assert sorted(call.user for call in judging(chat)) == sorted(
            family.judge_prompt(text) for text in texts
        )

    def test_the_base_model_is_asked_in_every_iteration(self, new_run, perform, llama):
        folder = new_run(llama)
        for iteration in (1, 2, 3):
            chat = FakeChat(Writer(llama, *[f"Write text {n} of {iteration}." for n in range(4)]))
            perform(self_instruct, folder, chat, iteration=iteration)
            assert {call.model for call in chat.calls} == {"base"}
            assert {row["model"] for row in rows_of(folder, INSTRUCTIONS, iteration)} == {"base"}

    @pytest.mark.parametrize("finished_before", [0, 12])
    def test_accepted_instructions_become_examples_for_qwen_and_not_for_llama(
        self, new_run, perform, family, tmp_path, finished_before
    ):
        seeds = seed_file(tmp_path / "seeds.jsonl", "Write one.", "Write two.", "Write three.")
        folder = new_run(family, seeds=seeds, instruct_count=24)
        if finished_before:  # the pool is the same after a restart
            with pytest.raises(RunError):
                chat = FakeChat(fails_after(2 * finished_before, Writer(family)))
                perform(self_instruct, folder, chat, concurrency=1)
        queue = [f"Please write another text number {n}." for n in range(24)]
        chat = FakeChat(Writer(family, *queue))
        perform(self_instruct, folder, chat, concurrency=1)
        assert len(writing(chat)) == 24 - finished_before
        shown = Counter(
            example
            for row in rows_of(folder, INSTRUCTIONS)[finished_before:]
            for example in row["examples"]
            if example not in read_seeds(Path(seeds))
        )
        assert bool(shown) == (family.name == "qwen")
        old = any("new text" in example for example in shown)  # accepted before the restart
        assert old == (family.name == "qwen" and finished_before > 0)

    def test_every_unit_and_attempt_has_its_own_seed_and_a_second_run_the_same(
        self, new_run, perform, llama
    ):
        def seeds(name: str) -> list[int]:
            chat = FakeChat(Writer(llama, verdict="No."))
            perform(self_instruct, new_run(llama, name), chat)
            return sorted(call.seed for call in writing(chat))

        assert len(set(seeds("first"))) == 40
        assert seeds("first again") == seeds("second")


def fails_after(calls: int, answer: Callable[[Call], object]) -> Callable[[Call], object]:
    """The server is gone after so many calls."""
    count = iter(range(10**9))
    return lambda call: answer(call) if next(count) < calls else EndpointError("gone")


class TestStep0Keeps:
    def outcome(self, perform, folder: RunFolder, chat: FakeChat) -> tuple[list[str], dict]:
        perform(self_instruct, folder, chat, concurrency=1)
        texts = [row["instruction"] for row in rows_of(folder, INSTRUCTIONS)]
        return texts, summary_of(folder, INSTRUCTIONS)["attempts"]["rejected"]

    @pytest.mark.parametrize(
        ("words", "reason"), [(3, "too_short"), (4, None), (499, None), (500, "too_long")]
    )
    def test_more_than_3_and_fewer_than_500_words(self, new_run, perform, llama, words, reason):
        folder = new_run(llama, instruct_count=1)
        texts, rejected = self.outcome(perform, folder, FakeChat(Writer(llama, prose(words))))
        assert rejected == ({reason: 1} if reason else {})
        assert (texts == [prose(words)]) == (reason is None)

    @pytest.mark.parametrize(("text", "reason"), [("写长文", "too_short"), ("写长文。", None)])
    def test_a_chinese_character_is_a_word(self, new_run, perform, qwen, text, reason):
        folder = new_run(qwen, instruct_count=1)
        _, rejected = self.outcome(perform, folder, FakeChat(Writer(qwen, text)))
        assert rejected == ({reason: 1} if reason else {})

    @pytest.mark.parametrize(
        ("first", "reason"),
        [
            ("  \n", "empty"),
            (said("Write a text without an", "length"), "truncated"),
            (ContextOverflowError("full"), "context"),
        ],
    )
    def test_what_is_no_instruction_costs_an_attempt(self, new_run, perform, llama, first, reason):
        folder = new_run(llama, instruct_count=1)
        chat = FakeChat(Writer(llama, first))
        texts, rejected = self.outcome(perform, folder, chat)
        assert rejected == {reason: 1}
        assert texts == ["Please write new text number 1."]
        assert len(judging(chat)) == 1  # the judge is not asked about what is no instruction

    def test_white_space_around_an_instruction_goes(self, new_run, perform, llama):
        folder = new_run(llama, instruct_count=1)
        chat = FakeChat(Writer(llama, " Write about the sea.\n"))
        assert self.outcome(perform, folder, chat)[0] == ["Write about the sea."]

    @pytest.mark.parametrize(
        ("name", "verdict", "reason"),
        [
            ("llama", "Yes.", None),
            ("llama", " yes, it could.", None),
            ("llama", "**Yes**", None),
            ("llama", "Answer: YES", None),
            ("llama", "No.", "judge_no"),
            ("llama", "no, hardly", "judge_no"),
            ("llama", "Perhaps.", "judge_unclear"),
            ("llama", "yes or no", "judge_unclear"),
            ("llama", "", "judge_unclear"),
            ("qwen", "是。", None),
            ("qwen", "“是”", None),
            ("qwen", "否。", "judge_no"),
            ("qwen", "不是。", "judge_no"),
            ("qwen", "是否", "judge_unclear"),
        ],
    )
    def test_the_judge_is_read_leniently(self, new_run, perform, name, verdict, reason):
        family = load_family(name)
        folder = new_run(family, instruct_count=1)
        chat = FakeChat(Writer(family, verdict=verdict))
        texts, rejected = self.outcome(perform, folder, chat)
        assert rejected == ({reason: 10} if reason else {})
        assert len(texts) == (reason is None)

    def test_a_judge_whose_context_is_full_costs_an_attempt(self, new_run, perform, llama):
        folder = new_run(llama, instruct_count=1)
        answers = [
            "Write about the seas.",
            ContextOverflowError("full"),
            "Write about the hills.",
            "Yes.",
        ]
        texts, rejected = self.outcome(perform, folder, FakeChat(answers))
        assert (texts, rejected) == (["Write about the hills."], {"context": 1})

    def test_an_instruction_is_accepted_once(self, new_run, perform, llama, tmp_path):
        seeds = seed_file(
            tmp_path / "seeds.jsonl", "Write about the sea.", "Write about the hills."
        )
        folder = new_run(llama, seeds=seeds, instruct_count=2)
        give(folder, INSTRUCTIONS, [instruction_row(0, "Write about a town.")])
        chat = FakeChat(
            Writer(
                llama,
                "Write about the sea.",  # a seed
                "write  about the SEA",  # the same but for case, white space and final mark
                "Write about a town!",  # of iteration 1
                "Write about the rivers.",
                "Write about the rivers.",  # accepted a moment ago
                "Write about the bridges.",
            )
        )
        perform(self_instruct, folder, chat, iteration=2, concurrency=1)
        texts = [row["instruction"] for row in rows_of(folder, INSTRUCTIONS, 2)]
        assert texts == ["Write about the rivers.", "Write about the bridges."]
        assert summary_of(folder, INSTRUCTIONS, 2)["attempts"]["rejected"] == {"duplicate": 4}
        assert len(judging(chat)) == 2  # no judge for what is dropped anyway

    def test_two_units_do_not_accept_the_same_while_the_judge_reads(self, new_run, perform, llama):
        folder = new_run(llama, instruct_count=2)
        chat = FakeChat(Writer(llama, "Write about the rivers.", "Write about the rivers."))
        perform(self_instruct, folder, chat, concurrency=2)
        texts = {row["instruction"] for row in rows_of(folder, INSTRUCTIONS)}
        assert texts == {"Write about the rivers.", "Please write new text number 1."}

    def test_ten_attempts_with_new_examples_then_it_is_given_up(self, new_run, perform, llama):
        folder = new_run(llama, instruct_count=3)
        chat = FakeChat(Writer(llama, verdict="No."))
        perform(self_instruct, folder, chat)
        assert len(writing(chat)) == 30
        # 3 x 10 draws of 2 among more than 20 seeds: hardly any pair twice
        assert len({call.opened_with for call in writing(chat)}) > 24
        assert rows_of(folder, INSTRUCTIONS) == []
        summary = summary_of(folder, INSTRUCTIONS)
        assert summary["units"] == {**NOTHING, "in": 3, "kept": 0, "dropped": {"judge_no": 3}}
        assert summary["attempts"] == {"total": 30, "accepted": 0, "rejected": {"judge_no": 30}}

    def test_seeds_are_no_part_of_the_output(self, new_run, perform, family):
        folder = new_run(family, instruct_count=10)
        perform(self_instruct, folder, FakeChat(Writer(family)))
        texts = {row["instruction"] for row in rows_of(folder, INSTRUCTIONS)}
        assert len(texts) == 10
        assert not texts & set(read_seeds(family.seeds))


class TestStep1:
    def test_each_instruction_is_answered_twice_from_its_bare_text(self, new_run, perform, llama):
        folder = new_run(llama, max_tokens=77)
        give(folder, INSTRUCTIONS, [instruction_row(0), instruction_row(1)])
        chat = FakeChat(lambda call: prose(20, call.seed))
        perform(initial_responses, folder, chat)
        asked = Counter((call.user, call.opened_with, call.sampling) for call in chat.calls)
        watched = Sampling(max_tokens=77, stop_repeat=llama.ngram_rules)
        assert asked == {(instruction_row(n)["instruction"], "", watched): 2 for n in (0, 1)}
        assert len({call.seed for call in chat.calls}) == 4
        rows = rows_of(folder, INITIAL)
        assert [row["id"] for row in rows] == [
            "i1-q000000-r0",
            "i1-q000000-r1",
            "i1-q000001-r0",
            "i1-q000001-r1",
        ]
        assert len({row["response"] for row in rows}) == 4

    @pytest.mark.parametrize(
        ("iteration", "model"), [(1, "base"), (2, "generator-iter1"), (3, "generator-iter2")]
    )
    def test_the_generator_of_the_iteration_before_answers(
        self, new_run, perform, llama, iteration, model
    ):
        folder = new_run(llama)
        give(folder, INSTRUCTIONS, [instruction_row(0)], iteration)
        chat = FakeChat(lambda call: prose(20, call.seed))
        perform(initial_responses, folder, chat, iteration=iteration)
        assert {call.model for call in chat.calls} == {model}
        assert {row["model"] for row in rows_of(folder, INITIAL, iteration)} == {model}

    def test_every_row_says_where_it_comes_from(self, new_run, perform, family):
        folder = new_run(family)
        give(folder, INSTRUCTIONS, [instruction_row(0)], 2)
        bad = said("cut", "length")
        chat = FakeChat([bad, "unfinished and", said(f" {prose(30)}\n", "stop"), prose(40, 100)])
        perform(initial_responses, folder, chat, iteration=2, concurrency=1)
        row = rows_of(folder, INITIAL, 2)[0]
        name = "i1-q000000-r0"
        assert row == {
            "id": name,
            "instruction_id": "i1-q000000",
            "instruction": instruction_row(0)["instruction"],
            "response": prose(30),
            "words": 30,
            "family": family.name,
            "iteration": 2,
            "model": "generator-iter1",
            "attempt": 3,
            "seed": chat.calls[2].seed,
            "finish_reason": "stop",
        }
        assert row["seed"] == call_seed(42, name, 3)
        assert summary_of(folder, INITIAL, 2)["attempts"] == {
            "total": 4,
            "accepted": 2,
            "rejected": {"truncated": 1, "ending": 1},
        }

    def test_twenty_attempts_then_the_response_is_dropped_for_its_last_fault(
        self, new_run, perform, llama
    ):
        folder = new_run(llama)
        give(folder, INSTRUCTIONS, [instruction_row(0)])
        faults = ["unfinished and"] * 19 + [said(prose(9), "length")]
        chat = FakeChat([*faults, *["unfinished and"] * 19, prose(9)])
        perform(initial_responses, folder, chat, concurrency=1)
        assert len({call.seed for call in chat.calls}) == 40
        assert [row["attempt"] for row in rows_of(folder, INITIAL)] == [20]
        units = summary_of(folder, INITIAL)["units"]
        assert units == {**NOTHING, "in": 2, "kept": 1, "dropped": {"truncated": 1}}

    def test_a_run_may_make_fewer_attempts(self, new_run, perform, llama):
        folder = new_run(llama, attempts=3)
        give(folder, INSTRUCTIONS, [instruction_row(0)])
        chat = FakeChat(lambda call: "unfinished and")
        perform(initial_responses, folder, chat)
        assert len(chat.calls) == 2 * 3
        units = summary_of(folder, INITIAL)["units"]
        assert units == {**NOTHING, "in": 2, "kept": 0, "dropped": {"ending": 2}}

    def test_an_instruction_that_fills_the_context_is_asked_once(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, INSTRUCTIONS, [instruction_row(0)])
        chat = FakeChat([ContextOverflowError("full"), prose(9)])
        perform(initial_responses, folder, chat, concurrency=1)
        units = summary_of(folder, INITIAL)["units"]
        assert units == {**NOTHING, "in": 2, "kept": 1, "dropped": {"context": 1}}

    def test_the_shortest_responses_are_dropped(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, INSTRUCTIONS, [instruction_row(n) for n in range(20)])
        lengths = random.Random(1).sample(range(10, 410, 10), 40)  # all different
        chat = FakeChat([prose(words, 1000) for words in lengths])
        perform(initial_responses, folder, chat, concurrency=1)
        rows, units = rows_of(folder, INITIAL), summary_of(folder, INITIAL)["units"]
        kept = [row["words"] for row in rows]
        # rank = 1 - index / 40, kept with 1 - 2 rank^3: nothing where rank > 0.5^(1/3) = 0.794,
        # which are the indices 0 to 8; the longest has 1 - 2 / 40^3 = 0.99997.
        assert not set(kept) & set(sorted(lengths)[:9])
        assert max(lengths) in kept
        assert statistics.mean(kept) > statistics.mean(lengths)
        assert kept == [words for words in lengths if words in kept]  # the order stays
        assert units == {
            **NOTHING,
            "in": 40,
            "kept": len(kept),
            "dropped": {"drop_short": 40 - len(kept)},
        }
        assert 14 <= len(kept) <= 32  # about 59.5 % of 40 = 24


class TestStep2:
    def test_each_response_is_extended_twice(self, new_run, perform, llama):
        folder = new_run(llama)
        initials = [initial_row(n, article(10, 10, start=100 * n)) for n in range(3)]
        give(folder, INITIAL, initials)
        perform(extend_responses, folder, FakeChat(FakeModel(llama)))
        rows = rows_of(folder, EXTENDED)
        by_id = {row["id"]: row for row in initials}
        assert sorted(row["id"] for row in rows) == sorted(
            f"{name}-e{copy}" for name in by_id for copy in (0, 1)
        )
        assert len({row["response"] for row in rows}) == 6
        for row in rows:
            initial = by_id[row["initial_id"]]
            for name in ("instruction", "instruction_id"):
                assert row[name] == initial[name]
            assert (row["initial"], row["initial_words"]) == (initial["response"], 20)
            assert row["words"] == len(row["response"].split()) > 24

    def test_the_order_of_the_responses_is_shuffled_by_the_seed(self, new_run, perform, llama):
        def order(name: str, **options) -> list[str]:
            folder = new_run(llama, name, **options)
            give(folder, INITIAL, [initial_row(n, prose(10, 100 * n)) for n in range(30)])
            perform(extend_responses, folder, FakeChat(FakeModel(llama)), concurrency=1)
            return [row["id"] for row in rows_of(folder, EXTENDED)]

        one = order("one")
        assert sorted(one) == [f"i1-q{n:06d}-r0-e{copy}" for n in range(30) for copy in (0, 1)]
        assert one != sorted(one)
        assert order("the same") == one
        assert order("another", seed=43) != one

    def test_the_longest_response_is_extended_first_and_rows_keep_their_order(
        self, new_run, perform, llama
    ):
        folder = new_run(llama)
        lengths = [10, 40, 20, 40, 30]
        give(folder, INITIAL, [initial_row(n, prose(w, 100 * n)) for n, w in enumerate(lengths)])
        chat = FakeChat(FakeModel(llama))
        perform(extend_responses, folder, chat, concurrency=1)
        started = list(dict.fromkeys(call.user for call in chat.calls))
        drafts = [
            n for user in started for n in range(5) if user.endswith(prose(lengths[n], 100 * n))
        ]
        assert [lengths[n] for n in drafts] == sorted(lengths, reverse=True)
        rows = [row["initial_words"] for row in rows_of(folder, EXTENDED)]
        assert rows != sorted(rows, reverse=True)

    def test_the_load_of_the_engines_is_in_the_summary(self, new_run, perform, llama, monkeypatch):
        async def half_idle() -> Load:
            return Load(1, 8, 8, running=4, waiting=0, idle_share=0.5)

        monkeypatch.setattr(fanout, "PACE_S", 0.001)
        folder = new_run(llama)
        give(folder, INITIAL, [initial_row(n, prose(10, 100 * n)) for n in range(3)])
        chat = FakeChat(FakeModel(llama), pause=lambda call: 0.01)
        chat.load = half_idle
        perform(extend_responses, folder, chat, concurrency=0)
        assert summary_of(folder, EXTENDED)["idle_share"] == 0.5

    @pytest.mark.parametrize(
        ("iteration", "model"), [(1, "base"), (2, "extender-iter1"), (3, "extender-iter2")]
    )
    def test_the_extender_of_the_iteration_before_extends(
        self, new_run, perform, llama, iteration, model
    ):
        folder = new_run(llama)
        give(folder, INITIAL, [initial_row(0, article(5, 5))], iteration)
        chat = FakeChat(FakeModel(llama))
        perform(extend_responses, folder, chat, iteration=iteration)
        assert {call.model for call in chat.calls} == {model}
        assert {row["model"] for row in rows_of(folder, EXTENDED, iteration)} == {model}

    def test_twenty_attempts_of_three_rounds_then_it_is_given_up(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, INITIAL, [initial_row(0, prose(10))])  # one block: one call a round
        chat = FakeChat(lambda call: prose(9, 100))
        perform(extend_responses, folder, chat)
        assert len(chat.calls) == 2 * 20 * 3
        assert len({call.seed for call in chat.calls}) == 2 * 20 * 3
        summary = summary_of(folder, EXTENDED)
        assert summary["units"] == {**NOTHING, "in": 2, "kept": 0, "dropped": {"not_longer": 2}}
        assert summary["attempts"]["rejected"] == {"not_longer": 40}

    def test_a_run_may_make_fewer_attempts(self, new_run, perform, llama):
        folder = new_run(llama, attempts=2)
        give(folder, INITIAL, [initial_row(0, prose(10))])
        chat = FakeChat(lambda call: prose(9, 100))
        perform(extend_responses, folder, chat)
        assert len(chat.calls) == 2 * 2 * 3
        assert summary_of(folder, EXTENDED)["attempts"]["rejected"] == {"not_longer": 4}

    def test_every_row_says_where_it_comes_from(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, INITIAL, [initial_row(0, prose(10))], 2)
        failed_attempt = [prose(11, 100), "unfinished and", said(prose(99), "length")]
        chat = FakeChat([*failed_attempt, prose(20, 100), prose(9), prose(30, 200), *["."] * 120])
        perform(extend_responses, folder, chat, iteration=2, concurrency=1)
        (row,) = rows_of(folder, EXTENDED, 2)
        assert (row["iteration"], row["model"], row["attempt"]) == (2, "extender-iter1", 2)
        assert row["family"] == "llama"
        assert row["seed"] == call_seed(42, row["id"], 2)
        assert chat.calls[3].seed == call_seed(42, row["id"], 2, "round1-stage2")
        assert row["rounds"] == [
            {"words": 20, "reason": None, "finish_reason": "stop"},
            {"words": 9, "reason": "not_longer", "finish_reason": "stop"},
            {"words": 30, "reason": None, "finish_reason": "stop"},
        ]
        assert (row["words"], row["response"]) == (30, prose(30, 200))
        rejected = summary_of(folder, EXTENDED, 2)["attempts"]["rejected"]
        assert rejected["ending"] == 1  # 11 words are no success, and the first fault tells why


class TestStep3:
    def test_the_length_of_the_extended_response_decides(self, new_run, perform, llama):
        folder = new_run(llama)
        # The longer the initial response, the shorter the extended one.
        rows = [extended_row(n, prose(100 - n), prose(100 + n)) for n in range(40)]
        give(folder, EXTENDED, rows)
        perform(filter_responses, folder)
        kept = rows_of(folder, FILTERED)
        words = [row["words"] for row in kept]
        assert all(row in rows for row in kept)
        assert min(words) > 108  # the 9 shortest never stay: see TestStep1
        assert 139 in words
        assert summary_of(folder, FILTERED)["units"] == {
            **NOTHING,
            "in": 40,
            "kept": len(kept),
            "dropped": {"drop_short": 40 - len(kept)},
        }

    def test_the_seed_decides_and_nothing_else(self, new_run, perform, llama):
        def kept(name: str, **options) -> list[str]:
            folder = new_run(llama, name, **options)
            give(folder, EXTENDED, [extended_row(n, prose(9), prose(50 + n)) for n in range(60)])
            perform(filter_responses, folder)
            return [row["id"] for row in rows_of(folder, FILTERED)]

        assert kept("one") == kept("two") != kept("three", seed=43)

    def test_a_handful_of_rows_is_kept_whole(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, EXTENDED, [extended_row(n, prose(9), prose(50 + n)) for n in range(4)])
        perform(filter_responses, folder)
        units = summary_of(folder, FILTERED)["units"]
        assert units == {**NOTHING, "in": 4, "kept": 4}


@pytest.mark.usefixtures("no_tokenizer")
class TestStep4:
    def rows(self, folder: RunFolder, role: str) -> list[dict]:
        return list(read_rows(folder.step(1, SFT).path / f"{role}.jsonl"))

    def test_the_generator_learns_instruction_to_extended_response(self, new_run, perform, family):
        folder = new_run(family)
        rows = [extended_row(n, prose(10), prose(20 + n)) for n in range(3)]
        give(folder, FILTERED, rows)
        perform(make_sft_data, folder)
        assert self.rows(folder, "gen_sft") == [
            {
                "id": row["id"],
                "system": "",
                "prompt": row["instruction"],
                "response": row["response"],
            }
            for row in rows
        ]

    def test_the_extender_learns_the_prompt_with_four_fifths_of_the_lines(
        self, new_run, perform, family
    ):
        folder = new_run(family)
        # 400 drafts of 10 lines, some of the line breaks single and some double
        lines = [[f"Line {number} of {n}." for number in range(10)] for n in range(400)]
        drafts = ["\n\n".join(["\n".join(part[:4]), *part[4:]]) for part in lines]
        rows = [extended_row(n, draft, prose(30)) for n, draft in enumerate(drafts)]
        give(folder, FILTERED, rows)
        perform(make_sft_data, folder)
        separator = {"qwen": "\n\n", "llama": "\n"}[family.name]
        kept_lines = 0
        for row, own_lines, pair in zip(rows, lines, self.rows(folder, "ext_sft"), strict=True):
            before, after = family.extend_prompt(row["instruction"], "|").split("|")
            assert pair["prompt"].startswith(before) and pair["prompt"].endswith(after)
            kept = pair["prompt"][len(before) : len(pair["prompt"]) - len(after)].split(separator)
            assert kept == [line for line in own_lines if line in kept]
            assert (pair["id"], pair["response"]) == (row["id"], row["response"])
            kept_lines += len(kept)
        # 4,000 lines with 0.8: 3,200, deviation sqrt(4000 x 0.8 x 0.2) = 25; four of them = 100
        assert 3100 < kept_lines < 3300

    def test_a_draft_is_never_empty(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, FILTERED, [extended_row(n, prose(9), prose(30)) for n in range(100)])
        perform(make_sft_data, folder)  # one line each: about 20 would be left without
        expected = [
            llama.extend_prompt(instruction_row(n)["instruction"], prose(9)) for n in range(100)
        ]
        assert [pair["prompt"] for pair in self.rows(folder, "ext_sft")] == expected

    def test_two_extensions_of_a_response_give_two_pairs_thinned_apart(
        self, new_run, perform, llama
    ):
        folder = new_run(llama)
        row = extended_row(0, article(*[5] * 40), prose(300))
        give(folder, FILTERED, [row, {**row, "id": "i1-q000000-r0-e1", "response": prose(400)}])
        perform(make_sft_data, folder)
        one, two = self.rows(folder, "ext_sft")
        assert (one["response"], two["response"]) == (prose(300), prose(400))
        assert one["prompt"] != two["prompt"]

    def test_the_trainer_finds_files_and_columns(self, new_run, perform, llama):
        folder = new_run(llama)
        give(folder, FILTERED, [extended_row(0, prose(9), prose(30))])
        perform(make_sft_data, folder)
        info = read_json(folder.step(1, SFT).path / "dataset_info.json")
        assert sorted(info) == ["ext_sft", "gen_sft"]
        for role, entry in info.items():
            assert entry["columns"] == {
                "prompt": "prompt",
                "response": "response",
                "system": "system",
            }
            (row,) = read_rows(folder.step(1, SFT).path / entry["file_name"])
            assert set(entry["columns"].values()) <= set(row), role

    def test_the_template_is_verified_in_the_first_iteration_alone(
        self, new_run, perform, llama, no_tokenizer
    ):
        folder = new_run(llama)
        for iteration in (1, 2):
            give(folder, FILTERED, [extended_row(0, prose(9), prose(30))], iteration)
            perform(make_sft_data, folder, iteration=iteration)
        assert no_tokenizer == ["models/fake"]

    def test_nothing_to_train_on_stops_the_run_and_says_where_to_look(
        self, new_run, perform, llama
    ):
        folder = new_run(llama)
        give(folder, FILTERED, [])
        with pytest.raises(RunError, match=r"iter_1/filtered: no extended response.*summary\.json"):
            perform(make_sft_data, folder)
        assert not folder.step(1, SFT).complete


def test_the_bundled_models_system_prompt_goes_into_the_rows(new_run, perform, family, monkeypatch):
    model = REPO_ROOT / "demo" / "models" / family.name
    if not (model / "tokenizer.json").exists():
        pytest.skip("the bundled model is not built")
    monkeypatch.setattr(make_sft_data, "verify_template", lambda *_: None)
    folder = new_run(family, base_model=str(model))
    give(folder, FILTERED, [extended_row(0, prose(9), prose(30))])
    perform(make_sft_data, folder)
    (row,) = read_rows(folder.step(1, SFT).path / "gen_sft.jsonl")
    rendered = load_tokenizer(str(model)).apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False
    )
    opening, _, rest = rendered.partition(family.system_opening)
    expected = rest.partition(family.system_closing)[0] if family.system_opening in rendered else ""
    assert row["system"] == expected


def run_all(
    perform,
    folder: RunFolder,
    trouble: float,
    *,
    fails: Callable[[], set[int]] = set,
    concurrency: int = 8,
) -> list[FakeChat]:
    """Steps 0 to 3 of the first iteration; what each of the first three asked."""
    chats = []
    for module in ASKING_STEPS:
        model = FakeModel(load_family(folder.options["family"]), trouble, fails())
        chats.append(FakeChat(model, pause=lambda call: call.seed % 3 / 5000))
        perform(module, folder, chats[-1], concurrency=concurrency)
    perform(filter_responses, folder)
    return chats


class TestWholeIteration:
    @pytest.mark.parametrize(
        ("finish_ratio", "trouble", "concurrency"), [(1.0, 0.6, 30), (0.9, 0.3, 5), (0.75, 0.05, 1)]
    )
    def test_every_unit_is_kept_dropped_for_a_reason_failed_or_cut(
        self, new_run, perform, family, finish_ratio, trouble, concurrency
    ):
        rng = random.Random(concurrency)
        folder = new_run(
            family,
            seed=concurrency,
            instruct_count=rng.randrange(20, 28),
            finish_ratio=finish_ratio,
        )
        run_all(
            perform,
            folder,
            trouble=trouble,
            fails=lambda: {rng.randrange(15)},  # one call of each step
            concurrency=concurrency,
        )
        units_in = folder.options["instruct_count"]
        for step in (INSTRUCTIONS, INITIAL, EXTENDED, FILTERED):
            summary, rows = summary_of(folder, step), rows_of(folder, step)
            units = summary["units"]
            assert (units["in"], units["failed"]) == (units_in, int(step != FILTERED))
            if finish_ratio == 1.0 or step == FILTERED:
                assert units["cut"] == 0
            elif concurrency == 1:  # else the last ones in flight may finish in time
                assert units["cut"] > 0
            lost = sum(units["dropped"].values()) + units["failed"] + units["cut"]
            assert units["in"] == units["kept"] + lost
            assert units["kept"] == len(rows) == len({row["id"] for row in rows})
            assert 0 not in units["dropped"].values()
            assert read_json(folder.step(1, step).path / "manifest.json")["rows"] == len(rows)
            if step != FILTERED:
                attempts = summary["attempts"]
                kept_before = units["kept"] + units["dropped"].get("drop_short", 0)
                assert attempts["accepted"] == kept_before
                assert attempts["total"] == kept_before + sum(attempts["rejected"].values())
            copies = {INSTRUCTIONS: 2, INITIAL: 2}.get(step, 1)
            units_in = copies * units["kept"]

    def test_tokens_are_those_of_all_replies(self, new_run, perform, family):
        folder = new_run(family, instruct_count=12)
        chats = run_all(perform, folder, trouble=0.3)
        for chat, step in zip(chats, (INSTRUCTIONS, INITIAL, EXTENDED), strict=True):
            assert summary_of(folder, step)["tokens"] == {
                "prompt": sum(reply.prompt_tokens for reply in chat.replies),
                "completion": sum(reply.completion_tokens for reply in chat.replies),
            }

    def test_the_order_of_completion_changes_nothing(self, new_run, perform, llama):
        # (Where the pool of examples does not grow.)
        def data(name: str, concurrency: int) -> list[bytes]:
            folder = new_run(llama, name, instruct_count=12)
            run_all(perform, folder, trouble=0.2, concurrency=concurrency)
            return [folder.step(1, s).data.read_bytes() for s in (INITIAL, EXTENDED, FILTERED)]

        assert data("one by one", 1) == data("many at once", 40)

    def test_every_step_writes_rows_that_datasets_reads(
        self, new_run, perform, family, no_tokenizer, tmp_path
    ):
        folder = new_run(family, instruct_count=12)
        run_all(perform, folder, trouble=0.2)
        perform(make_sft_data, folder)
        files = [folder.step(1, s).data for s in (INSTRUCTIONS, INITIAL, EXTENDED, FILTERED)]
        files += [folder.step(1, SFT).path / f"{role}.jsonl" for role in ("gen_sft", "ext_sft")]
        for file in files:
            read = datasets.load_dataset(
                "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
            )
            assert read.to_list() == list(read_rows(file)) != []

    def test_more_than_five_percent_failed_ends_the_step_unfinished_and_can_be_continued(
        self, new_run, perform, llama
    ):
        folder = new_run(llama, instruct_count=20)
        with pytest.raises(RunError, match="2 of 20 units failed.*the worker is gone"):
            perform(self_instruct, folder, FakeChat(FakeModel(llama, failing_calls={6, 20})))
        assert not folder.step(1, INSTRUCTIONS).complete
        perform(self_instruct, folder, FakeChat(FakeModel(llama)))
        assert folder.step(1, INSTRUCTIONS).complete
        assert summary_of(folder, INSTRUCTIONS)["units"] == {**NOTHING, "in": 20, "kept": 20}


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("seed", 43),
            ("max_tokens", 512),
            ("base_model", "models/other"),
            ("instruct_count", 5),
            ("seeds", "other.jsonl"),
        ],
    )
    def test_a_step_started_with_other_options_is_refused_and_the_option_named(
        self, new_run, perform, llama, option, value
    ):
        folder = new_run(llama)
        with pytest.raises(RunError):
            perform(self_instruct, folder, FakeChat(lambda call: EndpointError("gone")))
        changed = new_run(llama, **{option: value})
        chat = FakeChat(FakeModel(llama))
        with pytest.raises(UserError, match=f"was started with {option}=.*not {value}.*--fresh"):
            perform(self_instruct, changed, chat)
        assert chat.calls == []
        perform(self_instruct, new_run(llama), chat)  # the first value goes on
        assert len(rows_of(folder, INSTRUCTIONS)) == 4

    @pytest.mark.parametrize("module", [initial_responses, extend_responses, filter_responses])
    def test_a_step_before_that_is_not_complete_is_named(self, new_run, perform, llama, module):
        with pytest.raises(UserError, match=r"iter_1/\w+ is not complete"):
            perform(module, new_run(llama), FakeChat([]))

    def test_a_step_that_asks_a_server_asks_for_its_address(self, new_run, perform, llama):
        with pytest.raises(UserError, match="--base_url="):
            perform(self_instruct, new_run(llama))

    def test_a_complete_step_is_skipped(self, new_run, perform, llama, monkeypatch):
        folder, made = new_run(llama), []
        command = ["step", f"--results={folder.path}", "--iteration=1"]
        monkeypatch.setattr(sys, "argv", command)

        def run() -> object:
            with pytest.raises(SystemExit) as left:
                common.run_step(FILTERED, llama, made.append)
            return left.value.code

        assert run() == 0
        assert [(step.name, step.iteration, step.run) for step in made] == [(FILTERED, 1, folder)]
        give(folder, FILTERED, [])
        assert run() == 0
        assert len(made) == 1

    def test_the_script_of_another_family_is_refused(
        self, new_run, llama, qwen, monkeypatch, capsys
    ):
        command = ["step", f"--results={new_run(llama).path}", "--iteration=1"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            common.run_step(FILTERED, qwen, lambda step: None)
        assert left.value.code == 2
        assert "is a run of the family llama" in capsys.readouterr().err


class TestKilled:
    """A real process of step 1 against a server on a real socket."""

    UNITS = 300  # more than are answered before a signal comes, on a busy machine too

    def start(self, folder: RunFolder, server: FakeServer) -> subprocess.Popen:
        script = REPO_ROOT / "llama" / "step1_gen_initial_responses.py"
        options = [f"--results={folder.path}", "--iteration=1", f"--base_url={server.url}"]
        return subprocess.Popen(
            [sys.executable, str(script), *options, "--concurrency=6"],
            stderr=subprocess.PIPE,
            text=True,
        )

    def folder(self, new_run, llama, name: str) -> RunFolder:
        folder = new_run(llama, name)
        give(folder, INSTRUCTIONS, [instruction_row(n) for n in range(self.UNITS // 2)])
        return folder

    def answer(self, request: Request) -> Turn:
        seed = request.body["seed"]
        if seed % 5 == 0:
            return Turn(text="unfinished and", delay_s=0.005)
        return Turn(text=prose(20 + seed % 50, seed), delay_s=0.02)

    def stop(self, child: subprocess.Popen, server: FakeServer, rng, number: int) -> str:
        """Send the signal after some requests; what the process said on stderr."""
        enough = len(server.requests) + rng.randrange(5, 50)
        deadline = time.monotonic() + 30
        while len(server.requests) < enough and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        child.send_signal(number)
        return child.communicate(timeout=30)[1]

    def test_killed_then_interrupted_it_continues_with_nothing_lost_or_doubled(
        self, new_run, perform, llama
    ):
        rng = random.Random(1)
        folder = self.folder(new_run, llama, "killed")
        journal = folder.step(1, INITIAL).path / "journal.jsonl"
        with FakeServer(self.answer) as server:
            accepted = b""
            for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
                child = self.start(folder, server)
                told = self.stop(child, server, rng, number)
                assert child.returncode == status
                written = journal.read_bytes()
                assert written.startswith(accepted)
                accepted = written[: written.rfind(b"\n") + 1]
                assert 0 < accepted.count(b"\n") < self.UNITS
                assert not folder.step(1, INITIAL).complete
            assert told.splitlines()[-1].endswith("interrupted; the same command continues")
            assert "Traceback" not in told
            asked_before = len(server.requests)
            last = self.start(folder, server)
            last.communicate(timeout=30)
            assert last.returncode == 0
            asked_after = {request.body["seed"] for request in server.requests[asked_before:]}

        assert journal.read_bytes().startswith(accepted)
        records = list(read_rows(journal))
        assert sorted(record["unit"] for record in records) == list(range(self.UNITS))
        finished = [json.loads(line) for line in accepted.splitlines()]
        assert not {r["row"]["seed"] for r in finished if r["kept"]} & asked_after

        undisturbed = self.folder(new_run, llama, "undisturbed")
        chat = FakeChat(lambda call: self.answer_text(call.seed))
        perform(initial_responses, undisturbed, chat)
        files = [run.step(1, INITIAL).data.read_bytes() for run in (folder, undisturbed)]
        assert files[0] == files[1]

    def answer_text(self, seed: int) -> str:
        return self.answer(Request("", {}, {"seed": seed})).text


def test_a_step_folder_is_complete_only_with_its_manifest(new_run, llama):
    step = new_run(llama).step(1, INSTRUCTIONS)
    write_rows(step.data, iter([instruction_row(0)]))
    assert not step.complete
    with pytest.raises(UserError, match="is not complete"):
        step.require()
