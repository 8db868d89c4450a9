"""Demands of length that a finished text meets: drawn, and said in Chinese or English.

    constraint = draw_constraint(count_words(text), LengthRules(), rng)
    constraint.say("en")                 "3000-4000 words"
    constraint.say("zh", spelled=True)   "三千字至四千字"

Pure: numbers and luck in, strings out. The defaults are the paper's; all lengths are in words as
`text.count_words` counts them.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from self_lengthen.lengths import Demand
from self_lengthen.numerals import chinese_numeral

Language = Literal["zh", "en"]

# The same order in both languages: the four ways to demand a length.
PHRASES = {
    "zh": {"about": "大约{low}字", "range": "{low}字至{high}字", "above": "大于{low}字"}
    | {"below": "小于{high}字"},
    "en": {"about": "around {low} words", "range": "{low}-{high} words"}
    | {"above": "more than {low} words", "below": "less than {high} words"},
}
TYPES = tuple(PHRASES["en"])
RANGES = 3  # LonGen: 2000-4000, 4000-6000, 6000-8000

_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")
_LATIN_WORD = re.compile("[A-Za-z]+")


@dataclass(frozen=True)
class LengthRules:
    """How lengths are demanded. The defaults are the paper's."""

    min_words: int = 2000  # of a text that is kept
    max_words: int = 8000  # a text that is kept has fewer
    round_to: Mapping[int, float] = field(  # words -> share
        default_factory=lambda: {1000: 0.8, 2000: 0.2}
    )
    mix: Mapping[str, float] = field(  # type -> share
        default_factory=lambda: {"about": 0.40, "range": 0.25, "above": 0.10, "below": 0.25}
    )
    numerals_share: float = 0.5  # of the Chinese demands that write 三千 for 3000


@dataclass(frozen=True)
class Constraint:
    """A demand as LonGen writes it."""

    demand: Demand

    @property
    def type(self) -> str:
        return self.demand.kind

    def say(self, language: Language, *, spelled: bool = False) -> str:
        """In digits, or in Chinese numerals when `spelled`."""
        write = chinese_numeral if spelled else str
        numbers = {"low": self.demand.low, "high": self.demand.high}
        written = {name: write(n) for name, n in numbers.items() if n is not None}
        return PHRASES[language][self.type].format(**written)


def language_of(text: str) -> Language:
    """Chinese when it has more ideographs than Latin words."""
    ideographs, latin_words = (len(p.findall(text)) for p in (_IDEOGRAPH, _LATIN_WORD))
    return "zh" if ideographs > latin_words else "en"


def draw_constraint(words: int, rules: LengthRules, rng: random.Random) -> Constraint:
    """A demand that a text of `words` words meets; min_words <= words < max_words.

    "About" is `words` rounded; the others hold strictly. A text of exactly min_words has nothing to
    be above of: it gets "about" instead.
    """
    step = rng.choices(list(rules.round_to), list(rules.round_to.values()))[0]
    kind = rng.choices(list(rules.mix), list(rules.mix.values()))[0]
    lower, upper = rules.min_words, rules.max_words
    floor = words // step * step
    if kind == "range":
        return Constraint(Demand(kind, max(floor, lower), min(floor + step, upper)))
    if kind == "below":
        return Constraint(Demand(kind, None, min(floor + step, upper)))
    if kind == "above" and words > lower:
        return Constraint(Demand(kind, max((words - 1) // step * step, lower), None))
    rounded = min(max((words + step // 2) // step * step, lower), upper)
    return Constraint(Demand("about", rounded, rounded))


def range_label(words: int, rules: LengthRules) -> str:
    """Which third of the lengths a text is in: "2000-4000"."""
    edges = [
        rules.min_words + (rules.max_words - rules.min_words) * part // RANGES
        for part in range(RANGES + 1)
    ]
    third = next(n for n in range(RANGES) if words < edges[n + 1])
    return f"{edges[third]}-{edges[third + 1]}"
