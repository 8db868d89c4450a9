"""The lengths that a text demands, in Chinese and English.

    find_lengths("写一篇1.5万字左右的小说")        -> [about 15,000]
    find_lengths("an essay of 2,000-3,000 words") -> [range 2,000 to 3,000]

`published_lengths` reads by the simple rules of the published LongWriter-6K filter instead. Pure
functions, no file.
"""

import re
from dataclasses import dataclass
from typing import Literal

from self_lengthen.numerals import ENGLISH_SCALES, FORMAL, NUMBER, SUFFIXES, read_number

Kind = Literal["exact", "about", "range", "above", "below"]

SMALLEST_SPELLED = 11  # 十字路口, "in one word": a smaller number in words is a figure of speech

# Of the same number of characters, so that places in the text stay what they are.
PLAIN = str.maketrans(
    "０１２３４５６７８９．－–—～〜＋ｋＫ",
    "0123456789.---~~+kK",
)
UNIT = r"(?:\s*个?(?:汉字|单词|字|词)(?![节号体典母段面幕型串眼迹语汇])|[\s-]*(?i:words?(?![a-z])))"
SEPARATOR = r"(?:-{1,2}|~|至|到|(?i:\bto\b)|(?P<pair>(?i:\band\b)|和|与))"
CORE = (
    rf"(?:(?P<between>(?i:between)|介于|在)\s*)?"
    rf"(?:(?P<low>{NUMBER})(?P<own>{UNIT})?\s*{SEPARATOR}\s*)?(?P<high>{NUMBER})(?P<more>多|余)?"
)
DEMAND = re.compile(rf"{CORE}{UNIT}")
# "字数：3000" says its unit before the number.
LABELLED = re.compile(rf"(?:字数|(?i:word\s+(?:count|limit)))[^\d\n。；;]{{0,12}}?{CORE}")
VAGUE = re.compile(r"(?:[数几好上成]|第)\s*$")  # 数千字, 第三字

_NOT = r"(?:not|never|no|without|[a-z]+n't)\s+(?:to\s+)?(?:be\s+|go\s+)?"
ABOVE = (
    "大于|超过|超出|多于|高于|长于|不少于|不低于|不小于|不短于|不下于|不下|至少|最少|起码|"
    rf"{_NOT}(?:less|fewer|shorter|under|below)(?:\s+than)?|"
    r"(?:more|longer|greater)\s+than|over|above|beyond|at\s+least|exceed(?:s|ing)?|"
    r"minimum(?:\s+of)?|upwards?\s+of|[>≥]=?"
)
BELOW = (
    "小于|少于|低于|短于|不超过|不超出|不多于|不大于|不高于|不长于|至多|最多|"
    rf"{_NOT}(?:exceed(?:ing)?|over|above|beyond|(?:more|longer|greater)\s+than)|"
    r"(?:less|fewer|shorter)\s+than|under|below|within|at\s+most|up\s+to|"
    r"maximum(?:\s+of)?|[<≤]=?"
)
ABOUT = (
    "大约|大概|约|将近|接近|差不多|"
    r"about|around|approximately|approx\.?|roughly|circa|nearly|almost|some|close\s+to|[~≈]"
)
BEFORE = re.compile(
    rf"(?<![a-z])(?:(?P<above>{ABOVE})|(?P<below>{BELOW})|(?P<about>{ABOUT}))[了有达到为在\s]*$",
    re.IGNORECASE,
)
AFTER = re.compile(
    r"\s*(?:(?P<above>[及或]?以上|起|or\s+(?:more|longer)|at\s+(?:the\s+)?least|and\s+up|minimum|\+)"
    r"|(?P<below>[及或]?以下|[以之]内|内(?!容)|or\s+(?:less|fewer|shorter)|at\s+(?:the\s+)?most|max)"
    r"|(?P<about>左右|上下|前后|or\s+(?:so|thereabouts)))",
    re.IGNORECASE,
)
REACH = 30  # characters before a number in which its qualifier is looked for
SPOKEN_RANGE = re.compile("([一二两三四五六七八九])([一二两三四五六七八九])([十百千万]+)")


@dataclass(frozen=True)
class Demand:
    """A demanded length in words; `low` and `high` are equal where one number is demanded."""

    kind: Kind
    low: int | None  # None: open
    high: int | None

    @property
    def numbers(self) -> set[int]:
        return {number for number in (self.low, self.high) if number is not None}

    def nearest(self, words: int) -> int:
        """The length that meets the demand and is nearest to `words`."""
        raised = max(words, self.low) if self.low is not None else words
        return min(raised, self.high) if self.high is not None else raised


def find_lengths(text: str) -> list[Demand]:
    """All demanded lengths in order. A lower and an upper limit, only these, make a range."""
    text = text.translate(PLAIN)
    found: dict[int, Demand] = {}  # by the place where the number ends
    for pattern in (DEMAND, LABELLED):
        for match in pattern.finditer(text):
            demand = _demand(text, match)
            if demand is not None:
                found.setdefault(match.end("high"), demand)
    return _joined([found[place] for place in sorted(found)])


def stated_length(text: str) -> Demand | None:
    """The demand of a text that states exactly one length, however often; else None."""
    demands = find_lengths(text)
    different = {(demand.low, demand.high) for demand in demands}
    return demands[0] if len(different) == 1 else None


def _demand(text: str, match: re.Match[str]) -> Demand | None:
    low, high = match["low"], match["high"].translate(FORMAL)
    if low and match["pair"] and not match["between"]:
        low = None  # "5 tips and 300 words"
    start = match.start() if low else match.start("high")
    if low is None and (spoken := SPOKEN_RANGE.fullmatch(high)):
        low, high = spoken[1] + spoken[3], spoken[2] + spoken[3]
    value = read_number(high)
    if value is None or VAGUE.search(text[:start]):
        return None
    if low is not None:
        return _range(read_number(low), 1 if match["own"] else _scale(high), value)
    if not high[0].isdigit() and value < SMALLEST_SPELLED:
        return None
    return _single(_kind(text, start, match), value)


def _kind(text: str, start: int, match: re.Match[str]) -> str:
    """What the words around the number make of it: a limit counts more than "about"."""
    around = (BEFORE.search(text[max(0, start - REACH) : start]), AFTER.match(text, match.end()))
    kinds = {found.lastgroup for found in around if found}
    if match["more"]:
        kinds.add("above")
    return next((kind for kind in ("above", "below", "about") if kind in kinds), "exact")


def _single(kind: str, value: int) -> Demand:
    low = None if kind == "below" else value
    return Demand(kind, low, None if kind == "above" else value)


def _range(low: int | None, scale: int, high: int) -> Demand | None:
    if low is None:
        return None
    if low < 100 and low * scale <= high:  # 2-3千字, "two to three thousand words"
        low *= scale
    low, high = sorted((low, high))
    return Demand("range", low, high) if low < high else Demand("exact", low, high)


def _scale(number: str) -> int:
    """1000 of "3k", "3千" and "three thousand", else 1."""
    number = number.strip().casefold()
    spelled = ENGLISH_SCALES.get(re.split(r"[\s-]+", number)[-1], 1)
    return SUFFIXES.get(number[-1], spelled)


def _joined(demands: list[Demand]) -> list[Demand]:
    """No fewer than 2,000 and no more than 3,000 words: a range, when nothing else is said."""
    if [d.kind for d in demands] in (["above", "below"], ["below", "above"]):
        low, high = (next(d for d in demands if d.kind == kind) for kind in ("above", "below"))
        if low.low < high.high:
            return [Demand("range", low.low, high.high)]
    return demands


# The published LongWriter-6K filter: digits before 字, one Chinese digit before a scale and 字,
# digits and one blank before "words". Different values count apart, and so do two spellings.
PUBLISHED_DIGITS = re.compile(r"(\d+)(?:字| words)")
PUBLISHED_CHINESE = re.compile("([一二两三四五六七八九])([百千万])字")


def published_lengths(text: str) -> list[int]:
    """The lengths that the published rules see, each spelling once."""
    written = {match[1] for match in PUBLISHED_DIGITS.finditer(text)}
    spelled = {read_number(match[0][:-1]) for match in PUBLISHED_CHINESE.finditer(text)}
    return [*sorted(map(int, written)), *sorted(spelled)]
