"""Whether a model's rewriting of a query is the same query with the demanded length, and no more.

    check_rewriting(query, reply.text, constraint, language, reply.finish_reason)   None: it is

Pure functions, strings in and a reason out.
"""

import re
from enum import StrEnum

from self_lengthen.constraints import Constraint, Language, language_of
from self_lengthen.lengths import find_lengths
from self_lengthen.text import count_words

MIN_KEPT = 0.6  # of the query's different words; less is another query
MAX_GROWTH, MAX_MORE_WORDS = 2.0, 30  # a rewriting that is longer than both allow is an answer
MORE_LINES = 1  # the demand may stand on a line of its own

QUOTES = {"“": "”", '"': '"', "「": "」", "`": "`", "'": "'"}
MEANT = {"about": ("about", "exact"), "range": ("range",), "above": ("above",), "below": ("below",)}

OPENING_CHATTER = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay|ok|got it|no problem|here(?:'s| is| are)|"
    r"below is|i (?:have|can|will|cannot|can't)|i've|i'm sorry|as an ai)\b|"
    r"(?:the |my )?(?:new|rewritten|revised|updated|original) (?:request|query|version)\b|"
    r"(?:request|query)\s*:|"
    r"好的|当然|没问题|可以的|以下|下面|改写|新的?要求|要求\s*[:：]|这是|抱歉|对不起|作为.{0,6}模型)",
    re.IGNORECASE,
)
CLOSING_CHATTER = re.compile(
    r"(?:i hope|let me know|feel free|hope this|\bnote\s*:|this (?:version|rewrit)|i added|i have|"
    r"希望(?:对|能|这)|如有|如果(?:你|您)|注\s*[:：]|说明\s*[:：]|请告诉我|以上(?:是|就是)).*\Z",
    re.IGNORECASE,
)
_WORDS = re.compile("[\u4e00-\u9fff]|[a-z]+")


class Reason(StrEnum):
    """Why a rewriting is not taken, or a row is not rewritten at all."""

    TOO_SHORT = "too_short"  # the text
    TOO_LONG = "too_long"
    LANGUAGES_DIFFER = "languages_differ"  # of the query and its text
    EMPTY = "empty"
    TRUNCATED = "truncated"
    LANGUAGE = "language"  # the rewriting is in another one
    CHATTER = "chatter"
    NUMBER_MISSING = "number_missing"
    OTHER_LENGTH = "other_length"  # it demands a second length
    OTHER_TYPE = "other_type"  # "more than" became "about", say
    OTHER_QUERY = "other_query"  # it lost what was asked for, or is the answer
    CONTEXT = "context"  # the query leaves no room in the model's context


def tidy(reply: str) -> str:
    """The reply without the white space and the quotation marks around it."""
    text = reply.strip()
    while len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def check_rewriting(
    query: str,
    rewritten: str,
    constraint: Constraint,
    language: Language,
    finish_reason: str | None,
) -> Reason | None:
    """Why this rewriting is dropped, None to keep it. `rewritten` is tidy."""
    if not rewritten:
        return Reason.EMPTY
    if finish_reason == "length":
        return Reason.TRUNCATED
    if has_chatter(query, rewritten):
        return Reason.CHATTER
    if language_of(rewritten) != language:
        return Reason.LANGUAGE
    return check_length(rewritten, constraint) or check_query(query, rewritten)


def has_chatter(query: str, rewritten: str) -> bool:
    """Whether the model talks around the query, or gives it several times."""
    if len(_lines(rewritten)) > len(_lines(query)) + MORE_LINES:
        return True
    openings = (OPENING_CHATTER.match(text) for text in (rewritten, query))
    closings = (CLOSING_CHATTER.search(text) for text in (rewritten, query))
    return any(new and not old for new, old in (openings, closings))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def check_length(rewritten: str, constraint: Constraint) -> Reason | None:
    """Whether it demands this length, as a length, and no other."""
    wanted = constraint.demand.numbers
    demands = find_lengths(rewritten)
    if not wanted <= {number for demand in demands for number in demand.numbers}:
        return Reason.NUMBER_MISSING
    if not all(demand.numbers <= wanted for demand in demands):
        return Reason.OTHER_LENGTH
    if not all(demand.kind in MEANT[constraint.type] for demand in demands):
        return Reason.OTHER_TYPE
    return None


def check_query(query: str, rewritten: str) -> Reason | None:
    """Whether it still asks for the same."""
    asked, kept = (set(_WORDS.findall(text.casefold())) for text in (query, rewritten))
    words, before = count_words(rewritten), count_words(query)
    is_answer = words > MAX_GROWTH * before and words > before + MAX_MORE_WORDS
    if is_answer or len(asked & kept) < MIN_KEPT * len(asked):
        return Reason.OTHER_QUERY
    return None
