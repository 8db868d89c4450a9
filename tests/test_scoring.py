"""Claims about `self_lengthen.scoring`; `python -m pytest tests/test_scoring.py`.

Every score here is worked out by hand from the formulae of LonGen and LongWriter.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen.family import NgramRule
from self_lengthen.repetition import has_repeat
from self_lengthen.scoring import (
    CHAR_WINDOW,
    DEMAND_TYPES,
    WORD_WINDOW,
    Demand,
    band,
    first_repeat,
    length_score,
    longen_score,
    longwriter_words,
    parse_constraint,
)
from self_lengthen.text import count_words

LIMITS = st.integers(1, 10**6)


class TestParseConstraint:
    @pytest.mark.parametrize(
        ("kind", "constraint", "numbers"),
        [
            ("about", "大约3000字", (3000, 3000)),
            ("about", "around 3000 words", (3000, 3000)),
            ("range", "2000字至4000字", (2000, 4000)),
            ("range", "2000-4000 words", (2000, 4000)),
            ("above", "大于6000字", (6000, 6000)),
            ("above", "more than 6000 words", (6000, 6000)),
            ("below", "小于8000字", (8000, 8000)),
            ("below", "less than 8,000 words", (8000, 8000)),
            ("range", "2,500-13,000 words", (2500, 13000)),
            ("about", " around 50 words\n", (50, 50)),
        ],
    )
    def test_each_form_gives_its_numbers(self, kind, constraint, numbers):
        assert parse_constraint(kind, constraint) == Demand(kind, *numbers)

    @pytest.mark.parametrize(
        ("kind", "constraint"),
        [
            ("about", ""),
            ("about", "3000字"),
            ("about", "大约三千字"),
            ("about", "大约３０００字"),
            ("about", "大约3000字左右"),
            ("about", "around 3,00 words"),
            ("about", "around 3000"),
            ("about", "around 0 words"),
            ("about", "around -5 words"),
            ("about", "more than 3000 words"),
            ("above", "大约3000字"),
            ("range", "2000字"),
            ("range", "4000-2000 words"),
            ("range", "2000-2000 words"),
            ("below", "大于3000字"),
        ],
    )
    def test_any_other_string_is_refused_and_shown(self, kind, constraint):
        with pytest.raises(ValueError, match="constraint") as caught:
            parse_constraint(kind, constraint)
        assert repr(constraint) in str(caught.value)

    @pytest.mark.parametrize("kind", ["", "About", "approximately", "至少"])
    def test_an_unknown_type_is_refused_with_the_known_ones(self, kind):
        with pytest.raises(ValueError, match="unknown type .*about, range, above, below"):
            parse_constraint(kind, "大约3000字")

    @given(st.sampled_from(DEMAND_TYPES), st.text())
    def test_no_string_makes_it_fail_otherwise(self, kind, constraint):
        try:
            demand = parse_constraint(kind, constraint)
        except ValueError:
            return
        assert 0 < demand.low <= demand.high


# {type: (constraint of t = 1000 or 1000 to 2000, [(words, score of 1)])}; every turn of the line,
# one word on either side of it, and a point half-way down each slope.
BOUNDARIES = {
    "about": (  # a = 800, b = 1200
        ("大约1000字", "around 1000 words"),
        [(0, 0), (400, 0), (401, 0.0025), (600, 0.5), (799, 0.9975), (800, 1), (1000, 1)]
        + [(1200, 1), (1201, 1 - 1 / 600), (1500, 0.5), (1799, 1 / 600), (1800, 0), (9999, 0)],
    ),
    "range": (  # a = 1000, b = 2000
        ("1000字至2000字", "1,000-2,000 words"),
        [(0, 0), (500, 0), (501, 0.002), (750, 0.5), (999, 0.998), (1000, 1), (1500, 1)]
        + [(2000, 1), (2001, 0.999), (2500, 0.5), (2999, 0.001), (3000, 0), (9999, 0)],
    ),
    "above": (  # a = 1000, b = 1500
        ("大于1000字", "more than 1000 words"),
        [(0, 0), (500, 0), (501, 0.002), (750, 0.5), (999, 0.998), (1000, 1), (1250, 1)]
        + [(1500, 1), (1501, 1 - 1 / 750), (1875, 0.5), (2249, 1 / 750), (2250, 0), (9999, 0)],
    ),
    "below": (  # a = 500, b = 1000
        ("小于1000字", "less than 1000 words"),
        [(0, 0), (250, 0), (251, 0.004), (375, 0.5), (499, 0.996), (500, 1), (750, 1)]
        + [(1000, 1), (1001, 0.998), (1250, 0.5), (1499, 0.002), (1500, 0), (9999, 0)],
    ),
}


class TestLonGenScore:
    @pytest.mark.parametrize(
        ("kind", "constraint", "words", "score"),
        [
            (kind, constraint, words, score)
            for kind, (constraints, points) in BOUNDARIES.items()
            for constraint in constraints
            for words, score in points
        ],
    )
    def test_the_score_at_every_boundary_is_the_hand_computed_one(
        self, kind, constraint, words, score
    ):
        limits = band(parse_constraint(kind, constraint))
        assert longen_score(words, limits) == pytest.approx(score, abs=1e-12)

    @given(st.sampled_from(DEMAND_TYPES), LIMITS)
    def test_a_limit_that_is_a_whole_number_of_words_scores_exactly_one(self, kind, tens):
        low = 10 * tens  # then a and b are whole numbers in every type
        limits = band(Demand(kind, low, 2 * low if kind == "range" else low))
        assert [limit.is_integer() for limit in map(float, limits)] == [True, True]
        assert [longen_score(int(limit), limits) for limit in limits] == [1.0, 1.0]

    @given(st.integers(0, 10**7), LIMITS, LIMITS)
    def test_the_score_is_a_share_and_falls_with_the_distance(self, words, one, other):
        limits = min(one, other), max(one, other)
        score, further = longen_score(words, limits), longen_score(words + 1, limits)
        assert 0 <= score <= 1
        assert further >= score if words < limits[0] else further <= score


class TestLongWriterScore:
    @pytest.mark.parametrize(
        ("required", "actual", "score"),
        [
            (1000, 0, 0),
            (1000, 333, 0),  # less than a third: 1 - (1000/333 - 1)/2 is below 0
            (900, 300, 0),
            (1000, 400, 25),
            (1000, 500, 50),
            (1000, 625, 70),
            (1000, 800, 87.5),
            (1000, 1000, 100),
            (1000, 1300, 90),
            (1000, 1600, 80),  # the upper end of LongWriter-6K's filter
            (1000, 2500, 50),
            (1000, 4000, 0),
            (1000, 4001, 0),
        ],
    )
    def test_s_l_is_the_hand_computed_one(self, required, actual, score):
        assert length_score(required, actual) == pytest.approx(score, abs=1e-9)

    @given(LIMITS, st.integers(0, 10**7))
    def test_s_l_is_100_for_what_was_asked_and_less_for_all_else(self, required, actual):
        assert length_score(required, required) == 100
        score = length_score(required, actual)
        assert 0 <= score <= 100
        assert (score == 100) == (actual == required)

    @pytest.mark.parametrize("required", [0, -1, float("nan")])
    def test_no_required_length_is_no_score(self, required):
        with pytest.raises(ValueError, match="required length"):
            length_score(required, 100)


class TestLongWriterWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", 0),
            ("三个字。", 3),
            ("Two words, 42 no.", 3),
            ("It's", 2),  # the letters on both sides of the apostrophe
            ("word2vec", 0),
            ("用GPU训练", 3),  # no word boundary between a letter and a Chinese character
            ("用 GPU 训练", 4),
            ("naïve", 0),  # the word is not of a-z alone
            ("well-known", 2),
            ("，！ＡＢ", 0),
        ],
    )
    def test_it_counts_as_longwriter_does(self, text, words):
        assert longwriter_words(text) == words

    def test_it_is_not_count_words(self):
        text = "第1章：GPU 训练 2024。"
        assert (longwriter_words(text), count_words(text)) == (5, 9)

    @given(st.text(alphabet="中文 ,.aZ9-'，"), st.text(alphabet="中文 ,.aZ9-'，"))
    def test_a_line_break_between_two_texts_adds_their_words(self, one, other):
        both = longwriter_words(f"{one}\n{other}")
        assert both == longwriter_words(one) + longwriter_words(other)


class TestFirstRepeat:
    def test_a_text_without_a_repeated_window_has_no_place(self):
        assert first_repeat(" ".join(f"w{n}" for n in range(500))) is None
        assert first_repeat("".join(chr(0x4E00 + n) for n in range(500))) is None
        assert first_repeat("") is None

    def test_the_place_is_where_the_second_window_ends(self):
        words = [f"w{n}" for n in range(90)]
        assert first_repeat(" ".join([*words, *words[:10]])) == 1.0
        assert first_repeat(" ".join([*words, *words[:9]])) is None
        once, again = words[:20], words[20:]
        assert first_repeat(" ".join([*once, *once[:10], *again[:70]])) == pytest.approx(0.3)

    def test_chinese_windows_are_13_characters(self):
        text = "".join(chr(0x4E00 + n) for n in range(37))
        assert first_repeat(text + text[:13]) == 1.0
        assert first_repeat(text + text[:12]) is None

    @given(st.text(alphabet="ab 中文。\n", max_size=200))
    def test_it_finds_a_repeat_exactly_where_the_response_check_does(self, text):
        rules = NgramRule("char", CHAR_WINDOW), NgramRule("word", WORD_WINDOW)
        place = first_repeat(text)
        assert (place is not None) == has_repeat(rules, text)
        assert place is None or 0 < place <= 1


def test_it_needs_nothing_but_python():
    root = Path(__file__).resolve().parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import self_lengthen.scoring"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)
