"""Claims about `self_lengthen.text`; run with `python -m pytest tests/test_text.py`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from self_lengthen.text import (
    char_units,
    count_words,
    former_half,
    join_continuation,
    keep_prefix,
    split_blocks,
    word_units,
)

# Few characters, so that every kind of neighbour turns up: both languages, marks, white space.
TEXTS = st.text(alphabet="ab1中文，。？“”…！.,!?:;#-)('\"\n\t 　é", max_size=60)
ANY_TEXT = st.text(max_size=60)


def visible(text: str) -> str:
    return "".join(text.split())


class TestCountWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", 0),
            (" \n\t", 0),
            ("one two  three\nfour", 4),
            ("今天天气好。", 5 + 1),  # the full stop is in 3000-303f
            ("你好，world！", 2 + 1 + 1 + 1),  # full-width comma and mark are in ff00-ffef
            ("用GPU训练", 1 + 1 + 2),
            ("a中b", 1 + 1 + 1),  # the character parts a from b
            ("“引文”", 2 + 2),  # curly quotes are outside the ranges: two tokens of the rest
            ("don't re-do it", 3),
            ("\u4e00\u9fff", 2),  # the first and the last ideograph counted
            ("\u3400\ua000", 1),  # just outside on both sides: one token
            ("\u3000", 1),  # the ideographic space is in the range, as in the release
        ],
    )
    def test_counts_chinese_characters_plus_the_other_words(self, text, words):
        assert count_words(text) == words

    @given(TEXTS, TEXTS)
    def test_words_of_two_texts_with_white_space_between_add_up(self, left, right):
        assert count_words(f"{left}\n{right}") == count_words(left) + count_words(right)

    @given(TEXTS, TEXTS)
    def test_more_text_never_has_fewer_words(self, left, right):
        assert count_words(left + right) >= max(count_words(left), count_words(right))


class TestBlocks:
    def test_blank_lines_separate_blocks(self):
        blocks = split_blocks("# One\nstill one\n\ntwo\n \t\n\n  three\n")
        assert blocks.parts == ("# One\nstill one", "two", "  three")
        assert blocks.separator == "\n\n"

    def test_two_paragraphs_of_several_lines_are_cut_at_newlines(self):
        blocks = split_blocks("a\nb\n\nc\n")
        assert (blocks.parts, blocks.separator) == (("a", "b", "c"), "\n")

    def test_two_paragraphs_of_one_line_stay_two_paragraphs(self):
        blocks = split_blocks("a\n\nb")
        assert (blocks.parts, blocks.separator) == (("a", "b"), "\n\n")

    def test_three_paragraphs_are_never_cut_at_newlines(self):
        assert split_blocks("a\nb\n\nc\n\nd").parts == ("a\nb", "c", "d")

    @pytest.mark.parametrize("text", ["", "\n\n", " \n \n"])
    def test_a_blank_text_has_no_blocks(self, text):
        assert split_blocks(text).parts == ()
        assert (former_half(text), keep_prefix(text)) == ("", "")

    @given(TEXTS)
    def test_no_block_is_blank_and_nothing_visible_is_lost(self, text):
        blocks = split_blocks(text)
        assert all(part.strip() for part in blocks.parts)
        assert visible(blocks.join()) == visible(text)

    @given(TEXTS)
    def test_joined_blocks_split_into_the_same_blocks(self, text):
        blocks = split_blocks(text)
        assert split_blocks(blocks.join()).parts == blocks.parts


class TestFormerHalfAndPrefix:
    @pytest.mark.parametrize(
        ("count", "half", "prefix"),
        # floor(n / 2), floor(2n / 3)
        [(1, 0, 0), (2, 1, 1), (3, 1, 2), (4, 2, 2), (5, 2, 3), (6, 3, 4), (7, 3, 4), (9, 4, 6)],
    )
    def test_the_half_and_the_two_thirds_are_rounded_down(self, count, half, prefix):
        names = [f"block {n}" for n in range(count)]
        assert former_half("\n\n".join(names)) == "\n\n".join(names[:half])
        assert keep_prefix("\n\n".join(names)) == "\n\n".join(names[:prefix])

    def test_lines_are_joined_by_a_newline_again(self):
        assert former_half("a\nb\nc\nd") == "a\nb"
        assert keep_prefix("a\nb\nc") == "a\nb"

    @given(TEXTS)
    def test_both_are_the_beginning_of_the_texts_own_blocks(self, text):
        blocks = split_blocks(text)
        for beginning in (former_half(text), keep_prefix(text)):
            assert blocks.join().startswith(beginning)
            assert beginning in {blocks.first(n) for n in range(len(blocks.parts) + 1)}

    @given(TEXTS)
    def test_the_prefix_is_never_shorter_than_the_half_and_never_the_whole(self, text):
        assert len(keep_prefix(text)) >= len(former_half(text))
        assert len(keep_prefix(text)) < len(split_blocks(text).join()) or not text.strip()


class TestJoinContinuation:
    @pytest.mark.parametrize(
        ("prefix", "continuation", "joined"),
        [
            # nothing to join
            ("", "Text.", "Text."),
            (" \n", "Text.", "Text."),
            ("Text. \n", "", "Text."),
            # white space of its own is kept as it is
            ("One.", "\n\nTwo.", "One.\n\nTwo."),
            ("One.\n\n", " Two.", "One. Two."),
            ("一。", "\n二。", "一。\n二。"),
            # a finished sentence gets a blank line, an unfinished one a space
            ("It ended.", "Then more.", "It ended.\n\nThen more."),
            ("It ended. ", "Then more.", "It ended.\n\nThen more."),
            ('He said "no."', "Then more.", 'He said "no."\n\nThen more.'),
            ("He said “no.”", "Then more.", "He said “no.”\n\nThen more."),
            ("**Why?**", "Because.", "**Why?**\n\nBecause."),
            ("the long", "road home", "the long road home"),
            ("the long,", "winding road", "the long, winding road"),
            ("as follows:", "apples", "as follows: apples"),
            ("He said", '"no."', 'He said "no."'),
            # closing marks belong to the word before them
            ("the long", ", winding road", "the long, winding road"),
            ("the end", ".", "the end."),
            ("on", ".NET", "on .NET"),
            # Chinese is set without spaces
            ("春天来", "了。", "春天来了。"),
            ("春天来了。", "花开了。", "春天来了。花开了。"),
            ("春天来了，", "GPU也来了。", "春天来了，GPU也来了。"),
            ("他说：", "“好。”", "他说：“好。”"),
            ("他说", "“好。”", "他说“好。”"),
            ("他说“好”", "然后走了。", "他说“好”然后走了。"),
            ("用GPU", "，然后", "用GPU，然后"),
            ("用GPU", "训练", "用GPU 训练"),
            ("使用", "GPU", "使用 GPU"),
            # a heading is a line of its own
            ("# 标题", "正文。", "# 标题\n\n正文。"),
            ("Text.\n\n## Two roads", "The first road", "Text.\n\n## Two roads\n\nThe first road"),
        ],
    )
    def test_no_word_and_no_sentence_is_glued(self, prefix, continuation, joined):
        assert join_continuation(prefix, continuation) == joined

    @given(st.one_of(TEXTS, ANY_TEXT), st.one_of(TEXTS, ANY_TEXT))
    def test_the_visible_characters_of_both_parts_stay(self, prefix, continuation):
        joined = join_continuation(prefix, continuation)
        assert visible(joined) == visible(prefix) + visible(continuation)
        assert joined.endswith(continuation)
        assert joined.startswith(prefix.rstrip())

    @given(st.text("abé", min_size=1), st.text("abé", min_size=1))
    def test_words_without_a_space_between_stay_two_words(self, left, right):
        assert join_continuation(left, right).split() == [left, right]

    @given(TEXTS, TEXTS)
    def test_joining_never_loses_a_word(self, prefix, continuation):
        # Only a word that starts with its closing mark ("long" + ", winding") may lean on the left.
        joined = count_words(join_continuation(prefix, continuation))
        assert joined >= count_words(prefix.rstrip()) + count_words(continuation) - 1


class TestUnits:
    def test_each_non_ascii_character_and_each_ascii_run_is_a_unit(self):
        assert list(char_units("用 GPU 8块，ok\n好é")) == [
            "用",
            " GPU 8",
            "块",
            "，",
            "ok\n",
            "好",
            "é",
        ]

    def test_a_pure_ascii_text_is_one_char_unit(self):
        assert list(char_units("All of it.\n\nReally.")) == ["All of it.\n\nReally."]

    def test_white_space_of_any_kind_separates_word_units(self):
        assert list(word_units(" a b\tc\u3000d\n\n中文 ")) == ["a", "b", "c", "d", "中文"]

    @given(st.one_of(TEXTS, ANY_TEXT))
    def test_char_units_join_to_the_text_and_word_units_are_its_split(self, text):
        assert "".join(char_units(text)) == text
        assert list(word_units(text)) == text.split()

    @given(TEXTS)
    @settings(max_examples=50)
    def test_no_two_ascii_units_are_neighbours(self, text):
        ascii_units = [unit.isascii() for unit in char_units(text)]
        assert not any(
            left and right for left, right in zip(ascii_units, ascii_units[1:], strict=False)
        )
