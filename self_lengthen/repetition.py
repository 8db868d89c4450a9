"""Whether one window of n units of a text occurs twice: over a whole text, or while it arrives.

Pure and exact: windows are found by a hash and then compared unit by unit.

    has_repeat(rules, text) -> bool       a whole text, vectorised: the check of every response
    NgramWatch(rule).feed(piece) -> bool  the same for one rule, piece by piece
    TextWatch(rules, opening).feed(...)   all rules on a reply that is still being generated
"""

import re
from collections.abc import Iterable
from functools import cache
from itertools import accumulate

import numpy as np

from self_lengthen.family import NgramRule
from self_lengthen.text import char_units, join_continuation, word_units

# Of a polynomial hash modulo 2^64, as numpy's integers wrap around. Any odd number would do: what
# hashes alike is compared in full.
MULTIPLIER = 0x9E3779B97F4A7C15
SPACES = np.array([chr(code).isspace() for code in range(0x3001)])  # there is none beyond

REPETITION = "repetition"  # finish_reason of a reply that a TextWatch has stopped

_SEAM_IS_OPEN = re.compile(r"[,.;:!?)\]}]*")  # of such a beginning the next piece may decide


def _char_spans(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    in_run = codes < 0x80
    starts = np.flatnonzero(~(in_run & _before(in_run)))
    return starts, np.append(starts[1:], len(codes))


def _word_spans(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    in_word = ~(SPACES[np.minimum(codes, len(SPACES) - 1)] & (codes < len(SPACES)))
    starts = np.flatnonzero(in_word & ~_before(in_word))
    ends = np.flatnonzero(~in_word & _before(in_word))
    return starts, np.append(ends, len(codes))[: len(starts)]


def _before(mask: np.ndarray) -> np.ndarray:
    """Of each place the value of the one before it; False before the first."""
    return np.concatenate(([False], mask[:-1]))


# {unit: (where its units begin and end, what is equal just when the units of a stretch are)}
_SPANS = {"char": (_char_spans, str), "word": (_word_spans, str.split)}


def has_repeat(rules: Iterable[NgramRule], text: str) -> bool:
    """Whether `text` breaks one of the rules."""
    return any(_repeats(rule, text) for rule in rules)


def _repeats(rule: NgramRule, text: str) -> bool:
    find_spans, units_of = _SPANS[rule.unit]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    starts, ends = find_spans(codes)
    if len(starts) <= rule.n:
        return False
    hashes = _window_hashes(_span_hashes(codes, starts, ends), rule.n)
    ascending = np.sort(hashes)
    twice = np.flatnonzero(ascending[1:] == ascending[:-1])
    if not len(twice):
        return False

    def window(at: int) -> str | list[str]:
        return units_of(text[starts[at] : ends[at + rule.n - 1]])

    first, second = np.flatnonzero(hashes == ascending[twice[0]])[:2]
    if window(first) == window(second):
        return True
    # Different windows with one hash, against all odds: every window is looked at.
    windows = {tuple(window(start)) for start in range(len(hashes))}
    return len(windows) < len(hashes)


def _span_hashes(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A number for each span; equal spans have equal ones."""
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * _powers(MULTIPLIER, len(codes)), out=sums[1:])
    # A span counts with the powers of its place; divided by the first of them, of no place.
    return (sums[ends] - sums[starts]) * _powers(pow(MULTIPLIER, -1, 2**64), len(codes))[starts]


def _powers(base: int, count: int) -> np.ndarray:
    return _many_powers(base, 1 << count.bit_length())[:count]


@cache
def _many_powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _window_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """A hash of each window of n numbers, from those of half as many: log2(n) passes."""
    if n == 1:
        return hashes
    half = n // 2
    halves = _window_hashes(hashes, half)
    doubled = halves[: len(halves) - half] * np.uint64(pow(MULTIPLIER, half, 2**64)) + halves[half:]
    return doubled if n % 2 == 0 else doubled[:-1] * np.uint64(MULTIPLIER) + hashes[n - 1 :]


# {unit: (splitter, all of a piece that no later piece can change, what keeps joined units apart)}
_UNITS = {
    "char": (char_units, re.compile(r".*[^\x00-\x7f]", re.DOTALL), ""),
    "word": (word_units, re.compile(r".*\s", re.DOTALL), " "),
}


class NgramWatch:
    """One n-gram rule over a text that arrives in pieces. Exact, whatever the pieces are.

    Once a repeat is seen every later answer is True too.
    """

    def __init__(self, rule: NgramRule) -> None:
        self._split, self._settled, self._glue = _UNITS[rule.unit]
        self._n = rule.n
        self._tail: list[str] = []  # the last n - 1 completed units
        self._seen: set[str] = set()
        self._open: list[str] = []  # pieces of a last unit that may still grow
        self._repeated = False

    def feed(self, text_piece: str) -> bool:
        """Read on; True once a window of n completed units has occurred twice."""
        if self._repeated:
            return True
        settled = self._settled.match(text_piece)
        if settled is None:
            self._open.append(text_piece)
            return False
        completed = "".join(self._open) + settled[0]
        self._open = [text_piece[settled.end() :]]
        return self._count(completed)

    def close(self) -> bool:
        """The text has ended: its last unit counts too. Feed no more after this."""
        completed, self._open = "".join(self._open), []
        return self._repeated or self._count(completed)

    def _count(self, completed: str) -> bool:
        units = [unit + self._glue for unit in (*self._tail, *self._split(completed))]
        joined, ends = "".join(units), list(accumulate(map(len, units)))
        windows = [joined[a:b] for a, b in zip([0, *ends], ends[self._n - 1 :], strict=False)]
        fresh = set(windows)
        self._repeated = len(fresh) < len(windows) or not self._seen.isdisjoint(fresh)
        self._seen |= fresh
        last = units[max(0, len(units) - self._n + 1) :]
        self._tail = [unit[: len(unit) - len(self._glue)] for unit in last]
        return self._repeated


class TextWatch:
    """All rules over the text that a reply will become: joined to its opening and stripped.

    `repeated` is True as soon as that text cannot but repeat, however the reply goes on: what may
    still be stripped, or joined to what comes, is not judged yet.
    """

    def __init__(self, rules: Iterable[NgramRule], opening: str = "") -> None:
        self._watches = [NgramWatch(rule) for rule in rules]
        self._opening, self._held = opening.rstrip(), ""
        self._begun = False
        self.repeated = False
        self._watch(self._opening.lstrip())

    def feed(self, reply_piece: str) -> bool:
        """Read on; whether the text repeats by now."""
        self._held += reply_piece
        if not self._begun and not self._begin():
            return self.repeated
        settled = self._held.rstrip()
        self._watch(settled)
        self._held = self._held[len(settled) :]
        return self.repeated

    def _begin(self) -> bool:
        """Put what stands between opening and reply in front, once it is known."""
        if not self._held.strip():
            return False
        if not self._opening:
            self._held = self._held.lstrip()
        elif _SEAM_IS_OPEN.fullmatch(self._held):
            return False
        else:
            self._held = join_continuation(self._opening, self._held)[len(self._opening) :]
        self._begun = True
        return True

    def _watch(self, text: str) -> None:
        self.repeated |= any([watch.feed(text) for watch in self._watches])
