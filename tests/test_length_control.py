"""Claims about length control: the demands hold, and only right rewritings of a query are kept."""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import Call, FakeChat, hanzi, prose, said
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen import length_control
from self_lengthen.constraints import (
    TYPES,
    Constraint,
    LengthRules,
    draw_constraint,
    language_of,
    range_label,
)
from self_lengthen.endpoint import ContextOverflowError, EndpointError
from self_lengthen.errors import RunError, UserError
from self_lengthen.files import Row, read_json, read_rows
from self_lengthen.lengths import Demand, find_lengths
from self_lengthen.rewriting import Reason, check_rewriting, tidy

PAPERS = LengthRules()
DEMO = LengthRules(100, 400, {50: 0.8, 100: 0.2})


@st.composite
def rules(draw: st.DrawFn) -> LengthRules:
    lower = draw(st.integers(1, 5000))
    upper = lower + draw(st.integers(1, 9000))
    steps = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=3, unique=True))
    return LengthRules(lower, upper, {step: 1 / len(steps) for step in steps})


def meets(words: int, constraint: Constraint, given_rules: LengthRules) -> bool:
    """Whether a text of so many words does what the constraint says."""
    low, high = constraint.demand.low, constraint.demand.high
    if constraint.type == "range":
        return low <= words <= high and low < high
    if constraint.type == "above":
        return words > low
    if constraint.type == "below":
        return words < high
    clamped = low in (given_rules.min_words, given_rules.max_words)
    return clamped or any(
        low % step == 0 and 2 * abs(low - words) <= step for step in given_rules.round_to
    )


class TestDemands:
    @given(rules(), st.data(), st.randoms(use_true_random=False))
    def test_a_demand_always_holds_of_the_text_that_it_was_drawn_for(self, given_rules, data, rng):
        words = data.draw(st.integers(given_rules.min_words, given_rules.max_words - 1))
        constraint = draw_constraint(words, given_rules, rng)
        assert meets(words, constraint, given_rules)
        assert all(
            given_rules.min_words <= number <= given_rules.max_words
            for number in constraint.demand.numbers
        )

    @given(st.integers(2000, 7999), st.randoms(use_true_random=False), st.booleans())
    def test_what_is_said_in_either_language_is_the_same_demand(self, words, rng, spelled):
        constraint = draw_constraint(words, PAPERS, rng)
        for language in ("zh", "en"):
            text = constraint.say(language, spelled=spelled and language == "zh")
            assert find_lengths(text) == [constraint.demand]

    def test_the_strings_are_longens(self):
        demands = [
            Demand("about", 3000, 3000),
            Demand("range", 2000, 4000),
            Demand("above", 2000, None),
            Demand("below", None, 8000),
        ]
        assert [Constraint(demand).say("zh") for demand in demands] == [
            "大约3000字",
            "2000字至4000字",
            "大于2000字",
            "小于8000字",
        ]
        assert [Constraint(demand).say("en") for demand in demands] == [
            "around 3000 words",
            "2000-4000 words",
            "more than 2000 words",
            "less than 8000 words",
        ]
        assert Constraint(demands[1]).say("zh", spelled=True) == "两千字至四千字"

    def test_types_and_rounding_have_the_papers_shares(self):
        rng, count = random.Random(1), 20_000
        drawn = [draw_constraint(rng.randrange(2000, 8000), PAPERS, rng) for _ in range(count)]
        shares = {kind: n / count for kind, n in Counter(c.type for c in drawn).items()}
        assert shares == pytest.approx(PAPERS.mix, abs=0.015)
        widths = Counter(c.demand.high - c.demand.low for c in drawn if c.type == "range")
        assert widths[1000] / widths.total() == pytest.approx(0.8, abs=0.03)
        assert set(widths) == {1000, 2000}

    def test_nothing_is_above_the_least(self):
        only_above = LengthRules(mix={"above": 1.0})
        assert draw_constraint(2000, only_above, random.Random(1)).demand == Demand(
            "about", 2000, 2000
        )

    @pytest.mark.parametrize(
        ("words", "label"), [(2000, "2000-4000"), (3999, "2000-4000"), (4000, "4000-6000")]
    )
    def test_a_text_is_in_one_of_longens_ranges(self, words, label):
        assert range_label(words, PAPERS) == label

    @given(st.integers(100, 399))
    def test_every_text_within_the_bounds_is_in_a_range(self, words):
        low, high = map(int, range_label(words, DEMO).split("-"))
        assert low <= words < high

    @pytest.mark.parametrize(
        ("text", "language"),
        [("写一篇关于GPU的文章", "zh"), ("Write about 茶 and 水", "en"), ("", "en")],
    )
    def test_the_language_is_the_one_of_most_words(self, text, language):
        assert language_of(text) == language


ABOUT_3000 = Constraint(Demand("about", 3000, 3000))
RANGE = Constraint(Demand("range", 2000, 3000))
ABOVE = Constraint(Demand("above", 3000, None))
QUERY = "Write a report on the history of tea in the north, with examples."
FRAGE = "请写一篇关于北方茶叶历史的报告，要有例子。"


class TestRewriting:
    @pytest.mark.parametrize(
        "rewritten",
        [
            "Write a report of around 3,000 words on the history of tea in the north with examples",
            "In about three thousand words, report on the history of tea in the north.",
            f"{QUERY}\nLength: around 3000 words.",
            f"{QUERY} It should have roughly 3k words.",
            f"{QUERY} Make it 3000 words long.",
        ],
    )
    def test_every_right_wording_is_kept(self, rewritten):
        assert check_rewriting(QUERY, rewritten, ABOUT_3000, "en", "stop") is None

    @pytest.mark.parametrize(
        "rewritten",
        [
            "请写一篇关于北方茶叶历史的报告，大约3000字，要有例子。",
            "请写一篇约三千字的、关于北方茶叶历史的报告，要有例子。",
            "请写一篇关于北方茶叶历史的报告，要有例子，篇幅在３０００字左右。",
        ],
    )
    def test_every_right_chinese_wording_is_kept(self, rewritten):
        assert check_rewriting(FRAGE, rewritten, ABOUT_3000, "zh", "stop") is None

    @pytest.mark.parametrize(
        ("rewritten", "constraint", "reason"),
        [
            ("", ABOUT_3000, Reason.EMPTY),
            (QUERY, ABOUT_3000, Reason.NUMBER_MISSING),
            (f"{QUERY} Around 300 words.", ABOUT_3000, Reason.NUMBER_MISSING),
            (f"{QUERY} The year is 3000.", ABOUT_3000, Reason.NUMBER_MISSING),
            (f"{QUERY} Around 3000 words.", RANGE, Reason.NUMBER_MISSING),
            (f"{QUERY} Around 3000 words, not 500 words.", ABOUT_3000, Reason.OTHER_LENGTH),
            (f"{QUERY} 3000-4000 words.", ABOUT_3000, Reason.OTHER_LENGTH),
            (f"{QUERY} Less than 3000 words.", ABOUT_3000, Reason.OTHER_TYPE),
            (f"{QUERY} Around 3000 words.", ABOVE, Reason.OTHER_TYPE),
            (f"{QUERY} No more than 3000 words.", ABOVE, Reason.OTHER_TYPE),
            (f"Sure! {QUERY} Around 3000 words.", ABOUT_3000, Reason.CHATTER),
            (f"Here is the request:\n{QUERY} Around 3000 words.", ABOUT_3000, Reason.CHATTER),
            (f"New request: {QUERY} Around 3000 words.", ABOUT_3000, Reason.CHATTER),
            (f"{QUERY} Around 3000 words.\nI hope this helps!", ABOUT_3000, Reason.CHATTER),
            (f"1. {QUERY} 3000 words.\n2. {QUERY} 3000 words.\n3. -", ABOUT_3000, Reason.CHATTER),
            (f"{FRAGE} 大约3000字。", ABOUT_3000, Reason.LANGUAGE),
            ("Write around 3000 words.", ABOUT_3000, Reason.OTHER_QUERY),
            (f"{QUERY} Around 3000 words. {prose(60)}", ABOUT_3000, Reason.OTHER_QUERY),
        ],
    )
    def test_every_wrong_one_is_dropped_with_its_reason(self, rewritten, constraint, reason):
        assert check_rewriting(QUERY, rewritten, constraint, "en", "stop") == reason

    def test_a_reply_that_was_cut_is_dropped(self):
        rewritten = f"{QUERY} Around 3000 words"
        assert check_rewriting(QUERY, rewritten, ABOUT_3000, "en", "length") == Reason.TRUNCATED

    def test_what_looks_like_chatter_but_was_in_the_query_is_kept(self):
        query = "Here is my draft of a story on tea. I hope you can finish it for me."
        rewritten = query.replace("finish it", "finish it in around 3000 words")
        assert check_rewriting(query, rewritten, ABOUT_3000, "en", "stop") is None

    @given(st.text(), st.text())
    def test_no_text_breaks_the_check(self, query, rewritten):
        checked = check_rewriting(query, tidy(rewritten), ABOUT_3000, "en", "stop")
        assert checked is None or isinstance(checked, Reason)

    @pytest.mark.parametrize(
        ("reply", "query"),
        [
            (' "Write it." \n', "Write it."),
            ("“写一篇。”", "写一篇。"),
            ('"A" and "B"', '"A" and "B"'),
            ("```", "```"),
        ],
    )
    def test_quotation_marks_around_the_whole_are_no_part_of_it(self, reply, query):
        assert tidy(reply) == query


def input_rows(count: int) -> list[Row]:
    """Half Chinese, half English, of 100 to 399 words."""
    rows = []
    for number in range(count):
        words = 100 + (number * 37) % 300
        zh = number % 2 == 0
        query = FRAGE if zh else QUERY
        response = hanzi(words) if zh else prose(words)
        provenance = {"source": "collected", "iteration": 3, "model": "generator-iter2"}
        rows.append({"id": f"q{number}", "query": query, "response": response, **provenance})
    return rows


@pytest.fixture
def rewrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the script on rows with a fake in the server's place; the folder that it wrote."""

    def run(rows: list[Row], chat: FakeChat, *argv: str) -> Path:
        source = tmp_path / "long.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        monkeypatch.setattr(length_control, "Endpoint", lambda url, api_key: chat)
        options = ["--base_url=http://fake/v1", "--min_words=100", "--max_words=400"]
        options += ["--round_to=50:0.8,100:0.2", "--concurrency=8", *argv]
        monkeypatch.setattr(sys, "argv", ["add_length_control.py", str(source), *options])
        length_control.main()
        return tmp_path / "length_control"

    return run


def demanded(call: Call) -> tuple[str, str]:
    """The demand and the query in a prompt."""
    zh = language_of(call.user) == "zh"
    opened, closed = ("篇幅：", "。保留") if zh else ("this length: ", ". Keep")
    demand = call.user.partition(opened)[2].partition(closed)[0]
    return demand, call.user.rpartition("\n")[2]


def woven(call: Call) -> str:
    demand, query = demanded(call)
    return f"{query}篇幅{demand}。" if language_of(query) == "zh" else f"{query} Use {demand}."


MISDEEDS: dict[str, Callable[[str, str], str]] = {
    "right": lambda query, right: right,
    "drops the number": lambda query, right: query,
    "another number": lambda query, right: f"{query} 大约77字, around 77 words",
    "other language": lambda query, right: (
        f"{QUERY} Around 200 words." if language_of(query) == "zh" else f"{FRAGE}大约200字。"
    ),
    "chatter before": lambda query, right: f"Sure, here it is: 好的。\n\n{right}",
    "chatter after": lambda query, right: f"{right}\n\nLet me know. 希望对你有帮助。",
    "empty": lambda query, right: "  \n",
    "two versions": lambda query, right: f"{right}\n\n{right}\n\n{right}",
    "two lengths": lambda query, right: f"{right} 大约7777字, around 7777 words",
    "an answer": lambda query, right: right + (hanzi(300) if "字" in right else prose(300)),
    "forgets the subject": lambda query, right: "大约200字。" if "字" in right else "Write.",
}


class TestHundredQueries:
    ROWS = 100

    def misbehave(self, right_share: float) -> Callable[[Call], object]:
        def answer(call: Call) -> object:
            rng = random.Random(call.seed)
            names = list(MISDEEDS)
            name = "right" if rng.random() < right_share else rng.choice(names[1:])
            text = MISDEEDS[name](demanded(call)[1], woven(call))
            return said(text, "length" if rng.random() < 0.1 else "stop")

        return answer

    def test_all_are_right_or_dropped_with_a_reason(self, rewrite):
        folder = rewrite(input_rows(self.ROWS), FakeChat(self.misbehave(0.15)), "--attempts=4")
        kept = list(read_rows(folder / "data.jsonl"))
        summary = read_json(folder / "summary.json")
        units = summary["units"]
        assert units["in"] == self.ROWS == units["kept"] + sum(units["dropped"].values())
        assert 20 < len(kept) == units["kept"] < 90
        reasons = set(summary["attempts"]["rejected"]) | set(units["dropped"])
        assert reasons == {
            *("number_missing", "language", "chatter", "empty", "other_length", "other_type"),
            *("other_query", "truncated"),
        }
        for row in kept:
            right = f"{row['asked_before']}篇幅{row['demand']}。"
            if row["language"] == "en":
                right = f"{row['asked_before']} Use {row['demand']}."
            assert row["query"] == right
            (demand,) = find_lengths(row["query"])
            assert find_lengths(row["constraint"]) == [demand]
            assert meets(row["words"], Constraint(demand), DEMO)

    def test_a_good_model_loses_nothing_and_provenance_is_kept(self, rewrite):
        rows = input_rows(self.ROWS)
        folder = rewrite(rows, FakeChat(woven))
        kept = list(read_rows(folder / "data.jsonl"))
        assert [row["id"] for row in kept] == [row["id"] for row in rows]
        assert [row["response"] for row in kept] == [row["response"] for row in rows]
        assert {row["type"] for row in kept} == set(TYPES)
        assert {row["range"] for row in kept} == {"100-200", "200-300", "300-400"}
        spelled = [row for row in kept if row["demand"] != row["constraint"]]
        assert {row["language"] for row in spelled} == {"zh"} and 10 < len(spelled) < 40
        names = ["language", "range", "type", "constraint", "query", "response"]
        assert list(kept[0])[:6] == names
        assert kept[0]["model"] == "generator-iter2" and kept[0]["rewriter"] == "base"

    def test_stopped_in_the_middle_it_continues_to_the_same_rows(self, rewrite, tmp_path):
        rows = input_rows(self.ROWS)
        calls = iter(range(10**6))

        def fails_later(call: Call) -> object:
            return EndpointError("gone") if next(calls) > 60 else self.misbehave(0.5)(call)

        with pytest.raises(RunError, match="gone"):
            rewrite(rows, FakeChat(fails_later))
        done = len(list(read_rows(tmp_path / "length_control/journal.jsonl")))
        assert 0 < done < self.ROWS
        chat = FakeChat(self.misbehave(0.5))
        folder = rewrite(rows, chat)
        continued = (folder / "data.jsonl").read_bytes()
        again = rewrite(rows, FakeChat([]))  # finished: nothing is asked
        assert (again / "data.jsonl").read_bytes() == continued
        undisturbed = tmp_path / "other"
        rewrite(rows, FakeChat(self.misbehave(0.5)), f"--output={undisturbed}")
        assert (undisturbed / "data.jsonl").read_bytes() == continued

    def test_other_options_are_refused_by_name(self, rewrite):
        rewrite(input_rows(3), FakeChat(woven))
        with pytest.raises(UserError, match="mix=.*give the same value, or another --output"):
            rewrite(input_rows(3), FakeChat(woven), "--mix=about:1")


class TestRows:
    @pytest.mark.parametrize(
        ("query", "response", "reason"),
        [
            (QUERY, prose(99), "too_short"),
            (QUERY, prose(400), "too_long"),
            (FRAGE, prose(200), "languages_differ"),
        ],
    )
    def test_a_row_that_gets_no_demand_costs_no_call(self, rewrite, query, response, reason):
        folder = rewrite([{"query": query, "response": response}], FakeChat([]))
        assert read_json(folder / "summary.json")["units"]["dropped"] == {reason: 1}

    def test_a_query_that_fills_the_context_is_dropped(self, rewrite):
        row = {"query": QUERY, "response": prose(200)}
        folder = rewrite([row], FakeChat([ContextOverflowError("full")]))
        assert read_json(folder / "summary.json")["units"]["dropped"] == {"context": 1}

    def test_an_old_demand_must_give_way(self, rewrite):
        row = {"query": f"{QUERY} Around 5000 words.", "response": prose(200)}
        folder = rewrite([row], FakeChat(woven), "--attempts=2")
        assert read_json(folder / "summary.json")["units"]["dropped"] == {"other_length": 1}


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--min_words=400"], "--min_words=400: is not below --max_words=400"),
            (["--mix=about:0.5,range:0.6"], "the shares must be different and make 1"),
            (["--mix=roughly:1"], "the types are about, range, above, below"),
            (["--round_to=0:1"], "rounds to less than 1 word"),
            (["--round_to=many"], "argument --round_to"),
            (["--numerals_share=1.5"], "1.5 is not in [0, 1]"),
            (["--attempts=0"], "0 is below 1"),
        ],
    )
    def test_an_option_is_named(self, rewrite, tmp_path, options, told):
        with pytest.raises(UserError) as refusal:
            rewrite(input_rows(1), FakeChat([]), *options)
        assert told in str(refusal.value)
        assert not (tmp_path / "length_control").exists()

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("{", "long.jsonl:2: is not JSON"),
            ("[]", 'long.jsonl:2: has no text under "query"'),
            ('{"query": "a"}', 'long.jsonl:2: has no text under "response"'),
        ],
    )
    def test_a_broken_line_is_named(self, tmp_path, line, told):
        file = tmp_path / "long.jsonl"
        file.write_text(f'{{"query": "a", "response": "b"}}\n{line}\n')
        with pytest.raises(UserError) as refusal:
            length_control.read_input(file)
        assert told in str(refusal.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UserError, match="none.jsonl: cannot be read"):
            length_control.read_input(tmp_path / "none.jsonl")

    def test_a_prompt_without_its_slots_is_named(self, tmp_path):
        (tmp_path / "add_length_zh.md").write_text("{instruction}{constraint}")
        with pytest.raises(UserError, match="add_length_zh.md: needs"):
            length_control.read_prompts(tmp_path)
