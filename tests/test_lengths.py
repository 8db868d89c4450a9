"""Claims about demanded lengths: what a text asks for, in Chinese and English."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen.lengths import Demand, find_lengths, published_lengths, stated_length
from self_lengthen.numerals import CHINESE, chinese_numeral, read_number

ANY = st.integers(11, 99_999_998)


@given(st.integers(1, 99_999_999))
def test_a_chinese_numeral_is_read_as_the_number_it_was_written_from(number):
    assert read_number(chinese_numeral(number)) == number


@pytest.mark.parametrize(
    ("number", "numeral"),
    [
        (2000, "两千"),
        (3000, "三千"),
        (10_000, "一万"),
        (20_000, "两万"),
        (250, "二百五十"),
        (15, "十五"),
        (1050, "一千零五十"),
        (10_500, "一万零五百"),
        (15_000, "一万五千"),
    ],
)
def test_numerals_are_written_as_people_write_them(number, numeral):
    assert chinese_numeral(number) == numeral


@pytest.mark.parametrize("number", [0, -1, 100_000_000])
def test_a_number_without_a_numeral_is_refused(number):
    with pytest.raises(ValueError, match="is not in 1 to"):
        chinese_numeral(number)


@given(st.text(max_size=40) | st.from_regex(CHINESE, fullmatch=True))
def test_no_text_breaks_the_parser(text):
    for demand in find_lengths(f"{text}字 {text} words"):
        assert demand.numbers and (None in (demand.low, demand.high) or demand.low <= demand.high)


@given(ANY, ANY)
def test_the_constraints_of_the_method_are_read_as_they_are_meant(first, second):
    low, high = min(first, second), max(first, second) + 1
    said = {
        f"大约{low}字": about(low),
        f"大约{chinese_numeral(low)}字": about(low),
        f"大于{low}字": above(low),
        f"小于{chinese_numeral(high)}字": below(high),
        f"{low}字至{high}字": between(low, high),
        f"{chinese_numeral(low)}字至{chinese_numeral(high)}字": between(low, high),
        f"around {low} words": about(low),
        f"around {low:,} words": about(low),
        f"more than {low} words": above(low),
        f"less than {high} words": below(high),
        f"{low}-{high} words": between(low, high),
    }
    for constraint, demand in said.items():
        assert find_lengths(f"Write {constraint} on tea.") == [demand]
        assert find_lengths(f"请写{constraint}的文章。") == [demand]


def exact(value: int) -> Demand:
    return Demand("exact", value, value)


def about(value: int) -> Demand:
    return Demand("about", value, value)


def above(value: int) -> Demand:
    return Demand("above", value, None)


def below(value: int) -> Demand:
    return Demand("below", None, value)


def between(low: int, high: int) -> Demand:
    return Demand("range", low, high)


SAID = {
    "写一篇1万字的小说": exact(10_000),
    "写一篇一万五千字的小说": exact(15_000),
    "写一篇两千字的小说": exact(2000),
    "写一篇1.5万字左右的小说": about(15_000),
    "写一篇３０００字的作文": exact(3000),
    "写一篇3千字的作文": exact(3000),
    "写一篇1万5千字的作文": exact(15_000),
    "一篇万字长文": exact(10_000),
    "两千五百字": exact(2500),
    "三千五字": exact(3500),
    "贰仟字": exact(2000),
    "2000-3000字": between(2000, 3000),
    "2000～3000字": between(2000, 3000),
    "2000字到3000字": between(2000, 3000),
    "2-3千字": between(2000, 3000),
    "两三千字": between(2000, 3000),
    "一到两万字": between(10_000, 20_000),
    "介于2000和3000字之间": between(2000, 3000),
    "不少于2000字": above(2000),
    "不少于2000字，不超过3000字": between(2000, 3000),
    "超过 5,000 字": above(5000),
    "5000字以上": above(5000),
    "5000多字": above(5000),
    "不超过三千字": below(3000),
    "控制在800字以内": below(800),
    "字数不低于3000": above(3000),
    "字数：3000左右": about(3000),
    "约3000个汉字": about(3000),
    "3k words": exact(3000),
    "a 5,000-word essay": exact(5000),
    "a 5,000 words essay": exact(5000),
    "two thousand words": exact(2000),
    "twenty-five hundred words": exact(2500),
    "a thousand words": exact(1000),
    "two and a half thousand words": exact(2500),
    "two hundred and fifty words": exact(250),
    "between five hundred and eight hundred words": between(500, 800),
    "approximately 1.5k words": about(1500),
    "2,000 to 3,000 words": between(2000, 3000),
    "2000–3000 words": between(2000, 3000),
    "2-3k words": between(2000, 3000),
    "between two thousand and three thousand words": between(2000, 3000),
    "two to three thousand words": between(2000, 3000),
    "at least 4000 words": above(4000),
    "no fewer than 4000 words": above(4000),
    "4000 words or more": above(4000),
    "under 4000 words": below(4000),
    "no more than 4000 words": below(4000),
    "it should not exceed 4000 words": below(4000),
    "up to 4000 words": below(4000),
    "it shouldn't be over 4000 words": below(4000),
    "4000 words at most": below(4000),
    "a word count of about 4000": about(4000),
    "5 tips and 300 words": exact(300),
}


@pytest.mark.parametrize(("text", "demand"), SAID.items())
def test_a_demand_is_read_as_people_mean_it(text, demand):
    assert find_lengths(text) == [demand]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "写一篇关于1998年的文章",
        "十字路口的故事",
        "四字成语的由来",
        "一字一句地写",
        "写几千字就好",
        "数千字的稿子",
        "文件不超过1000字节",
        "用12号字体写",
        "In one word, describe it.",
        "A report on 5000 wordless years.",
        "The winter of 1998",
        "several thousand words",
        "in other words, write it",
    ],
)
def test_what_is_no_length_is_not_taken_for_one(text):
    assert find_lengths(text) == []


def test_only_one_length_counts_as_stated():
    assert stated_length("写3000字，注意：三千字。") == exact(3000)
    assert stated_length("Part one of 500 words, part two of 700 words.") is None
    assert stated_length("写一篇文章") is None


@pytest.mark.parametrize(
    ("demand", "words", "nearest"),
    [
        (exact(3000), 10, 3000),
        (above(3000), 10, 3000),
        (above(3000), 4000, 4000),
        (below(3000), 10, 10),
        (below(3000), 4000, 3000),
        (between(2000, 3000), 10, 2000),
        (between(2000, 3000), 2500, 2500),
        (between(2000, 3000), 9999, 3000),
    ],
)
def test_the_nearest_length_that_meets_a_demand(demand, words, nearest):
    assert demand.nearest(words) == nearest


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("写一篇3000字的文章", [3000]),
        ("写一篇三千字的文章，要3000字", [3000, 3000]),
        ("写一篇一万五千字的文章", [5000]),  # as the published rules misread it
        ("写1万字", []),
        ("a 3000 words essay", [3000]),
        ("a 3,000 words essay", [0]),
        ("a 3000-word essay", []),
        ("两百字，500字", [500, 200]),
    ],
)
def test_the_published_rules_see_what_their_patterns_match(text, lengths):
    assert published_lengths(text) == lengths
