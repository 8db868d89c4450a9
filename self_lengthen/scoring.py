"""How well a text keeps to a demanded length: LonGen's score and LongWriter's.

    demand = parse_constraint("about", "大约3000字")
    longen_score(count_words(text), band(demand))            0 to 1
    length_score(3000, longwriter_words(text))               S_L, 0 to 100

The two benchmarks count words in two ways (`text.count_words`, `longwriter_words`), never mixed.
Pure functions, standard library only. Reads and writes no file.
"""

import re
from dataclasses import dataclass

from self_lengthen.text import char_units, word_units

CHAR_WINDOW, WORD_WINDOW = 13, 10  # the response check's windows; paper's release

_NUMBER = r"(\d{1,3}(?:,\d{3})+|\d+)"
# LonGen's constraint strings, Chinese and English.
_FORMS = {
    "about": (rf"大约{_NUMBER}字", rf"around {_NUMBER} words"),
    "range": (rf"{_NUMBER}字至{_NUMBER}字", rf"{_NUMBER}-{_NUMBER} words"),
    "above": (rf"大于{_NUMBER}字", rf"more than {_NUMBER} words"),
    "below": (rf"小于{_NUMBER}字", rf"less than {_NUMBER} words"),
}
DEMAND_TYPES = tuple(_FORMS)

_LONGWRITER_CHARACTER = re.compile("[\u4e00-\u9fff]")
_LONGWRITER_WORD = re.compile(r"\b[a-zA-Z]+\b")


@dataclass(frozen=True)
class Demand:
    """A demanded length in words; `low` and `high` are equal unless `kind` is "range"."""

    kind: str  # one of DEMAND_TYPES
    low: int
    high: int


def parse_constraint(kind: str, constraint: str) -> Demand:
    """The demand of one of LonGen's constraint strings ("大约3000字", "2000-3000 words").

    Raises ValueError, in words for a user, when `kind` is unknown, the string is of another kind or
    of none, a number is 0, or a range does not rise.
    """
    if kind not in _FORMS:
        raise ValueError(f"unknown type {kind!r}, known are {', '.join(DEMAND_TYPES)}")
    for form in _FORMS[kind]:
        if match := re.fullmatch(form, constraint.strip(), re.ASCII):
            numbers = [int(digits.replace(",", "")) for digits in match.groups()]
            low, high = numbers[0], numbers[-1]
            if low == 0 or (kind == "range" and low >= high):
                raise ValueError(f"the constraint {constraint!r} cannot be met")
            return Demand(kind, low, high)
    zh, en = (form.replace(_NUMBER, "N") for form in _FORMS[kind])
    raise ValueError(f"the constraint {constraint!r} is not {zh!r} or {en!r} as its type says")


def band(demand: Demand) -> tuple[float, float]:
    """The lengths [a, b] in words that fulfil the demand. Source: LonGen.

    Multiplied before divided, so that a limit that is a whole number is met exactly.
    """
    low, high = demand.low, demand.high
    return {
        "about": (4 * low / 5, 6 * low / 5),
        "range": (low, high),
        "above": (low, 3 * low / 2),
        "below": (low / 2, low),
    }[demand.kind]


def longen_score(words: int, limits: tuple[float, float]) -> float:
    """1 within the limits [a, b], falling to 0 at a/2 and at 3b/2. Source: LonGen."""
    low, high = limits
    if words < low:
        return max(2 * words / low - 1, 0.0)
    if words > high:
        return max(3 - 2 * words / high, 0.0)
    return 1.0


def longwriter_words(text: str) -> int:
    """Chinese characters plus words of Latin letters. Source: LongWriter's evaluation.

    Digits count for nothing, and neither does a word that touches a digit or a Chinese character.
    """
    characters = len(_LONGWRITER_CHARACTER.findall(text))
    return characters + len(_LONGWRITER_WORD.findall(text))


def length_score(required: float, actual: float) -> float:
    """S_L, 0 to 100: of `actual` words where `required` (above 0) were asked. Source: LongWriter.

    Falls to 0 at four times and at a third of it. Raises ValueError unless required > 0.
    """
    if not required > 0:
        raise ValueError(f"a required length of {required} words cannot be scored")
    if actual > required:
        return 100 * max(0.0, 1 - (actual / required - 1) / 3)
    if actual <= 0:
        return 0.0
    return 100 * max(0.0, 1 - (required / actual - 1) / 2)


def first_repeat(text: str) -> float | None:
    """Where a window first occurs for the second time: in (0, 1], None when none does.

    Both windows of the response check count: 13 character units, and 10 words. The place is that of
    the repeated window's end, as a share of the text's units.
    """
    counted = ((list(char_units(text)), CHAR_WINDOW), (list(word_units(text)), WORD_WINDOW))
    places = [place for units, n in counted if (place := _first_repeat(units, n)) is not None]
    return min(places, default=None)


def _first_repeat(units: list[str], window: int) -> float | None:
    seen: set[tuple[str, ...]] = set()
    for end in range(window, len(units) + 1):
        ngram = tuple(units[end - window : end])
        if ngram in seen:
            return end / len(units)
        seen.add(ngram)
    return None
