"""Which samples stay: checks that answer with a reason (`None` = keep), and `drop_short`.

Pure logic: nothing here reads, writes or asks a model. What differs between model families comes in
as a `ModelFamily`, luck as a `random.Random`.

    check_response(family, text, finish_reason) -> Reason | None
    drop_short(lengths, rng)        the paper's step 3: mostly the longer texts stay
    read_judge(family, reply)       yes, no or unclear
    instruction_key(text)           equal for instructions that are the same
"""

import random
import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from functools import cache

import numpy as np

from self_lengthen.family import ModelFamily
from self_lengthen.repetition import REPETITION, has_repeat


class Reason(StrEnum):
    """Why a sample was dropped. Counted by name in every manifest and report."""

    EMPTY = "empty"
    TRUNCATED = "truncated"  # cut by max_tokens or the context's end
    ENDING = "ending"  # does not end like a finished text
    SELF_TALK = "self_talk"  # the model talks about its own rewriting
    REPETITION = "repetition"  # also a finish_reason: of a reply that was stopped there
    NOT_LONGER = "not_longer"
    CONTEXT = "context"  # the prompt leaves no room in the model's context
    JUDGE_NO = "judge_no"
    JUDGE_UNCLEAR = "judge_unclear"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    DUPLICATE = "duplicate"
    DROP_SHORT = "drop_short"


MIN_ROWS_TO_DROP = 5  # ranks among fewer rows say nothing about length: keep them all


def check_response(family: ModelFamily, text: str, finish_reason: str | None) -> Reason | None:
    """Why this answer is dropped, None to keep it. The cheap checks come first.

    `finish_reason` is the server's: "length" means cut off by the limit of tokens, REPETITION
    stopped at the first repeat; anything else means finished.
    """
    stripped = text.strip()
    if not stripped:
        return Reason.EMPTY
    if finish_reason == "length":
        return Reason.TRUNCATED
    if finish_reason == REPETITION:
        return Reason.REPETITION
    if stripped[-1] not in family.endings:
        return Reason.ENDING
    if has_self_talk(family, stripped):
        return Reason.SELF_TALK
    if has_repeat(family.ngram_rules, stripped):
        return Reason.REPETITION
    return None


def has_self_talk(family: ModelFamily, text: str) -> bool:
    """Whether the family's self-talk words stand in the first or last lines of `text`.

    Blank lines count as lines, as in the paper's release.
    """
    if not family.self_talk_words:
        return False
    lines = text.strip().split("\n")
    tail_start = max(0, len(lines) - family.self_talk_last_lines)
    edges = lines[: family.self_talk_first_lines] + lines[tail_start:]
    return _whole_words(family.self_talk_words).search("\n".join(edges)) is not None


@cache
def _whole_words(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})s?\b", re.IGNORECASE)


def keep_probabilities(lengths: Sequence[int]) -> list[float]:
    """For each row of `drop_short` the probability that it stays: max(0, 1 - 2 rank^3).

    rank = 1 - index / n with the row's 0-based index in ascending order of length (longest 1/n,
    shortest 1); rows of equal length share their middle index. On average 59.5 % stay:
    the integral from 0 to 1 is 0.75 x 0.5^(1/3). Source: the paper's release. O(n log n).
    """
    ascending = np.sort(lengths)
    first = np.searchsorted(ascending, lengths, "left")
    last = np.searchsorted(ascending, lengths, "right") - 1
    rank = 1 - (first + last) / (2 * len(ascending))
    return np.maximum(0.0, 1 - 2 * rank**3).tolist()


def drop_short(lengths: Sequence[int], rng: random.Random) -> list[bool]:
    """For each row whether it stays; `lengths` are in characters.

    One draw of `rng` a row, in the order of the rows. Fewer than MIN_ROWS_TO_DROP rows all stay.
    """
    if len(lengths) < MIN_ROWS_TO_DROP:
        return [True] * len(lengths)
    return [rng.random() < probability for probability in keep_probabilities(lengths)]


_LABEL = re.compile(r"[^:\n]{1,30}:")  # "Answer:" in front of the judge's word
_EITHER_OR = re.compile(r" *(?:[/|、]|或|\bor\b)? *")  # between the two words of a question


def read_judge(family: ModelFamily, reply: str) -> bool | None:
    """The judge's yes (True) or no (False) at the reply's beginning, None when it is unclear.

    A label ("Answer:"), markup and punctuation in front are passed over. A reply that only repeats
    the question ("yes or no", "是否") is unclear.
    """
    reply = unicodedata.normalize("NFKC", reply).strip()
    verdict = _leading_verdict(family, reply)
    if verdict is None and (label := _LABEL.match(reply)):
        return _leading_verdict(family, reply[label.end() :])
    return verdict


def _leading_verdict(family: ModelFamily, reply: str) -> bool | None:
    yes, no = _leading_words(family.judge_yes), _leading_words(family.judge_no)
    reply = re.sub(r"\A[\W_]+", "", reply)
    for verdict, words, opposite in ((True, yes, no), (False, no, yes)):
        if word := words.match(reply):
            rest = _EITHER_OR.match(reply, word.end())
            return None if opposite.match(reply, rest.end()) else verdict
    return None


@cache
def _leading_words(words: tuple[str, ...]) -> re.Pattern[str]:
    # The longest first. An ASCII word must be whole ("yesterday" is no yes); Chinese has no spaces.
    longest_first = sorted(words, key=len, reverse=True)
    ends = [re.escape(word) + (r"(?![^\W_])" if word.isascii() else "") for word in longest_first]
    return re.compile("|".join(ends), re.IGNORECASE)


_SPACE_BESIDE_CHINESE = re.compile(
    "(?<=[\u3000-\u303f\u4e00-\u9fff]) | (?=[\u3000-\u303f\u4e00-\u9fff])"
)


def instruction_key(text: str) -> str:
    """The same key for instructions that differ only in case, width, white space or final mark."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = _SPACE_BESIDE_CHINESE.sub("", " ".join(folded.split()))
    return spaced.rstrip(" .!?。,;:")
