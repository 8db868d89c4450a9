"""Claims about `self_lengthen.repetition`; `python -m pytest tests/test_repetition.py`."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from self_lengthen import repetition
from self_lengthen.family import NgramRule, load_family
from self_lengthen.repetition import NgramWatch, TextWatch, has_repeat
from self_lengthen.text import char_units, join_continuation, word_units

QWEN = load_family("qwen")
LLAMA = load_family("llama")
CHINESE_DIGITS = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"  # 16 different characters


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


class TestRulesOfTheFamilies:
    def test_thirteen_chinese_characters_twice_are_a_repetition_and_twelve_are_not(self):
        thirteen, twelve = CHINESE_DIGITS[:13], CHINESE_DIGITS[:12]
        assert has_repeat(QWEN.ngram_rules, f"{thirteen}，{thirteen}。")
        assert not has_repeat(QWEN.ngram_rules, f"{twelve}，{twelve}。")

    def test_ten_words_twice_are_a_repetition_and_nine_are_not(self):
        assert has_repeat(LLAMA.ngram_rules, f"{words(10)} and {words(10)}")
        assert not has_repeat(LLAMA.ngram_rules, f"{words(9)} and {words(9)}")

    @pytest.mark.parametrize(("family", "unit", "n"), [(QWEN, "啊", 13), (LLAMA, "a ", 10)])
    def test_overlapping_windows_count(self, family, unit, n):
        # n units hold one window; n + 1 units hold two, the same one.
        assert not has_repeat(family.ngram_rules, unit * n)
        assert has_repeat(family.ngram_rules, unit * (n + 1))

    def test_an_ascii_run_in_chinese_is_one_unit(self):
        # 12 characters + the run "GPU 8" = 13 units; the run differs in the second text.
        twelve = CHINESE_DIGITS[:12]
        assert has_repeat(QWEN.ngram_rules, f"{twelve}GPU 8，{twelve}GPU 8。")
        assert not has_repeat(QWEN.ngram_rules, f"{twelve}GPU 8，{twelve}GPU 88。")

    def test_english_under_qwen_is_judged_by_its_words(self):
        assert has_repeat(QWEN.ngram_rules, f"{words(10)} and {words(10)} .")
        assert not has_repeat(QWEN.ngram_rules, f"{words(9)} and {words(9)} .")
        assert has_repeat(QWEN.ngram_rules, f"他说：{words(12)}，又说： {words(12)} 。")

    def test_white_space_between_words_does_not_hide_a_repetition(self):
        assert has_repeat(LLAMA.ngram_rules, words(10) + "\n\n" + words(10).replace(" ", "  "))


def occurs_twice(rule: NgramRule, text: str) -> bool:
    """The rule as it is written down: a dictionary of all windows."""
    units = list({"char": char_units, "word": word_units}[rule.unit](text))
    windows: dict[tuple[str, ...], int] = {}
    for start in range(len(units) - rule.n + 1):
        window = tuple(units[start : start + rule.n])
        windows[window] = windows.get(window, 0) + 1
    return any(count > 1 for count in windows.values())


RULES = st.builds(NgramRule, st.sampled_from(["char", "word"]), st.integers(1, 4))
TEXTS = st.text(alphabet="ab中文é \n　", max_size=40)
PIECES = st.lists(st.text(alphabet="ab中文é \n　", max_size=8), max_size=12)


class TestHasRepeat:
    @given(RULES, TEXTS)
    def test_any_text_is_judged_as_the_dictionary_judges_it(self, rule, text):
        assert has_repeat([rule], text) == occurs_twice(rule, text)

    @given(RULES, st.text(max_size=40))
    def test_so_is_any_unicode_text(self, rule, text):
        assert has_repeat([rule], text) == occurs_twice(rule, text)

    @given(st.integers(1, 20), st.integers(0, 60), st.data())
    def test_so_is_a_text_of_distinct_units_with_one_of_them_put_in_again(self, n, count, data):
        units = [f"w{number}" for number in range(count)]
        start = data.draw(st.integers(0, max(0, count - 1)))
        text = " ".join(units + units[start : start + data.draw(st.integers(0, 25))])
        rule = NgramRule("word", n)
        assert has_repeat([rule], text) == occurs_twice(rule, text)

    @given(RULES, TEXTS)
    def test_hashes_that_collide_change_no_verdict(self, rule, text):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repetition, "MULTIPLIER", 1)  # windows of the same letters hash alike
            assert has_repeat([rule], text) == occurs_twice(rule, text)

    def test_beyond_what_is_looked_up_there_is_no_white_space(self):
        spaces = [code for code in range(0x110000) if chr(code).isspace()]
        assert max(spaces) == len(repetition.SPACES) - 1

    def test_half_a_surrogate_pair_is_a_character(self):
        assert has_repeat([NgramRule("char", 2)], "\ud800中\ud800中")
        assert not has_repeat([NgramRule("char", 2)], "\ud800中\udc00中")

    def test_one_rule_that_is_broken_is_enough(self):
        rules = [NgramRule("char", 13), NgramRule("word", 2)]
        assert has_repeat(rules, "to be or to be")
        assert not has_repeat(rules[:1], "to be or to be")
        assert not has_repeat([], "to be or to be")


class TestNgramWatch:
    @given(RULES, PIECES)
    def test_any_text_in_any_pieces_is_judged_as_the_dictionary_judges_the_whole(
        self, rule, pieces
    ):
        watch = NgramWatch(rule)
        verdicts = [watch.feed(piece) for piece in pieces] + [watch.close()]
        assert verdicts[-1] == occurs_twice(rule, "".join(pieces))
        assert not any(earlier and not later for earlier, later in pairwise(verdicts))

    @given(RULES, st.lists(st.text(max_size=5), max_size=8))
    def test_so_is_any_unicode_text(self, rule, pieces):
        watch = NgramWatch(rule)
        for piece in pieces:
            watch.feed(piece)
        assert watch.close() == occurs_twice(rule, "".join(pieces))

    @given(RULES, PIECES)
    def test_it_says_repeat_with_the_very_piece_that_completes_one(self, rule, pieces):
        watch, read = NgramWatch(rule), ""
        for piece in pieces:
            read += piece
            open_unit = re.search({"char": r"[\x00-\x7f]*\Z", "word": r"\S*\Z"}[rule.unit], read)
            assert watch.feed(piece) == occurs_twice(rule, read[: open_unit.start()])

    def test_an_open_unit_counts_only_when_it_is_complete(self):
        watch = NgramWatch(NgramRule("word", 2))
        assert not watch.feed("so it is, so i")
        assert not watch.feed("t")  # "it" may still become "item"
        assert watch.feed(" ")
        watch = NgramWatch(NgramRule("word", 2))
        assert not watch.feed("so it is, so it")
        assert watch.close()

    def test_units_are_compared_one_by_one_not_as_joined_text(self):
        # "ab c" and "a bc" are the same letters in the same order.
        assert not NgramWatch(NgramRule("word", 2)).feed("ab c x a bc ")


OPENINGS = st.one_of(st.just(""), st.text(alphabet="ab. 中文。\n　#", max_size=12))


def final_text(opening: str, reply: str) -> str:
    """What the response check judges in the end."""
    return join_continuation(opening, reply).strip()


class TestTextWatch:
    @given(RULES, OPENINGS, PIECES, st.text(alphabet="ab中é \n　.", max_size=6))
    def test_what_it_stops_is_rejected_however_the_reply_goes_on(self, rule, opening, pieces, rest):
        watch, read = TextWatch([rule], opening), ""
        for piece in ["", *pieces]:
            read += piece
            if watch.feed(piece):
                for end in ("", rest, "\n", "x"):
                    assert has_repeat([rule], final_text(opening, read + end))

    @given(RULES, OPENINGS, PIECES)
    @example(NgramRule("char", 2), "", ["éaéa "])
    def test_it_stops_every_repetition_of_completed_units_at_once(self, rule, opening, pieces):
        reply = "".join(pieces)
        watch = TextWatch([rule], opening)
        verdicts = [watch.feed(piece) for piece in pieces]
        text = final_text(opening, reply + "中")  # completes every unit before it
        completed = {"char": text[:-1], "word": re.sub(r"\S*\Z", "", text)}[rule.unit]
        # In "éaéa 中" the second "a" is another unit, "a ": a repeat only while nothing follows.
        if verdicts and has_repeat([rule], completed.rstrip()) and has_repeat([rule], text):
            assert watch.feed("中")

    def test_the_opening_counts(self):
        rules = LLAMA.ngram_rules
        watch = TextWatch(rules, f"First. {words(10)} .")
        assert not watch.feed(f"And {words(9)}")
        assert watch.feed(" w9 and")
        assert not TextWatch(rules).feed(f"And {words(10)} ")

    def test_an_opening_that_repeats_is_known_before_any_reply(self):
        assert TextWatch(LLAMA.ngram_rules, f"{words(10)} {words(10)} .").repeated
        # The last word may still grow.
        assert not TextWatch(LLAMA.ngram_rules, f"{words(10)} {words(10)}").repeated

    def test_opening_and_reply_are_joined_as_the_extension_joins_them(self):
        # "end." and "Next" are two words, whatever stands between the tokens.
        watch = TextWatch([NgramRule("word", 2)], "the end. Next or the end.")
        assert watch.feed("Next one")

    def test_white_space_that_will_be_stripped_is_not_judged(self):
        rule = NgramRule("char", 2)
        watch = TextWatch([rule])
        assert not watch.feed("\u3000\u3000\u3000\u3000中\u3000\u3000\u3000\u3000")
        assert watch.feed("文")  # now the white space stands within the text
