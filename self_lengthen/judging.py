"""What a judge is asked about a text, and how its reply is read. Pure, but for the prompt files.

    rubric = RUBRICS["longwriter"]
    prompt = judge_prompt(rubric, "zh", question, response)
    read_judgement(rubric, reply.text, reply.finish_reason)     Judgement, or the Fault

A reply is read leniently where its meaning is plain (a fenced block, talk around the object, "8" or
8.0 for 8, keys in another case) and counted as a fault everywhere else: no score is ever guessed.

Reads eval/prompts/judge_<rubric>_<language>.md; writes nothing.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).resolve().parent.parent / "eval" / "prompts"


@dataclass(frozen=True)
class Rubric:
    name: str
    dimensions: tuple[str, ...]
    high: int  # marks are whole numbers from 1 to this


RUBRICS = {
    rubric.name: rubric
    for rubric in (
        Rubric(
            "longen",
            ("Relevance", "Coherence", "Accuracy", "Consistency", "Clarity")
            + ("Creativity", "Engagement"),
            high=10,
        ),
        Rubric(
            "longwriter",
            ("Relevance", "Accuracy", "Coherence", "Clarity")
            + ("Breadth and Depth", "Reading Experience"),
            high=5,
        ),
    )
}


class Fault(StrEnum):
    """Why a reply is no judgement. Counted by name in the summary."""

    EMPTY = "empty"
    REFUSAL = "refusal"
    CUT = "cut"  # by max_tokens, before the object was complete
    NO_JSON = "no_json"
    MISSING = "missing_dimension"
    NOT_WHOLE = "not_a_whole_number"
    OUT_OF_RANGE = "out_of_range"
    AMBIGUOUS = "ambiguous"  # two different marks for one dimension


@dataclass(frozen=True)
class Judgement:
    scores: dict[str, int]  # {dimension: mark}, in the rubric's order
    analysis: str


def judge_prompt(rubric: Rubric, language: str, instruction: str, response: str) -> str:
    """The user's message to the judge, in Chinese for "zh", else in English."""
    template = _template(rubric.name, "zh" if language == "zh" else "en")
    values = {"instruction": instruction, "response": response}
    # One pass over the template: braces inside the judged texts are never slots.
    return re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], slot[0]), template)


@cache
def _template(rubric_name: str, language: str) -> str:
    path = PROMPTS / f"judge_{rubric_name}_{language}.md"
    return path.read_text(encoding="utf-8").rstrip("\n")


def read_judgement(rubric: Rubric, reply: str, finish_reason: str | None) -> Judgement | Fault:
    """The marks that the reply gives, or why it gives none."""
    if finish_reason == "content_filter":
        return Fault.REFUSAL
    reply = reply.rpartition("</think>")[2].strip()  # marks weighed while thinking are not given
    if not reply:
        return Fault.CUT if finish_reason == "length" else Fault.EMPTY
    keys = {_key(dimension) for dimension in rubric.dimensions}
    found = [candidate for candidate in _candidates(reply) if keys & candidate.keys()]
    if not found:
        return _no_object(reply, finish_reason)
    complete = [candidate for candidate in found if keys <= candidate.keys()]
    if not complete:
        return Fault.MISSING
    read = [_read(rubric, candidate) for candidate in complete]
    faults = [one for one in read if isinstance(one, Fault)]
    if faults:
        return faults[0]
    return read[0] if all(one.scores == read[0].scores for one in read) else Fault.AMBIGUOUS


REFUSAL_CHARACTERS = 300  # a refusal says so at its beginning
_REFUSAL = re.compile(
    r"\b(?:I|we) (?:can(?:no|')t|am (?:not able|unable)|won't|will not|must decline)\b"
    r"|\bI'm (?:sorry|not able|unable)\b|\bas an AI\b"
    r"|抱歉|对不起|(?:我|本人)(?:无法|不能|不便|拒绝)|作为(?:一个|一名)?(?:AI|人工智能)",
    re.IGNORECASE,
)


def _no_object(reply: str, finish_reason: str | None) -> Fault:
    if finish_reason == "length":
        return Fault.CUT
    beginning = reply[:REFUSAL_CHARACTERS].replace("’", "'")
    return Fault.REFUSAL if _REFUSAL.search(beginning) else Fault.NO_JSON


_CLASH = object()  # in place of a value that an object gives twice, and differently


def _candidates(reply: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a reply with their keys folded, and the objects inside them."""
    decoder = json.JSONDecoder(object_pairs_hook=_folded)
    start = reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield value
            yield from (inner for inner in value.values() if isinstance(inner, dict))
        start = reply.find("{", end)


def _folded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for name, value in pairs:
        key = _key(name)
        folded[key] = _CLASH if key in folded and folded[key] != value else value
    return folded


def _key(name: str) -> str:
    """The same for "Breadth and Depth", "breadth_and_depth" and "Breadth & Depth"."""
    return re.sub(r"[\W_]+", "", name.replace("&", "and")).casefold()


def _read(rubric: Rubric, candidate: dict[str, Any]) -> Judgement | Fault:
    scores = {}
    for dimension in rubric.dimensions:
        mark = _mark(rubric, candidate[_key(dimension)])
        if isinstance(mark, Fault):
            return mark
        scores[dimension] = mark
    analysis = candidate.get("analysis")
    return Judgement(scores, analysis if isinstance(analysis, str) else "")


_WRITTEN_MARK = re.compile(r"\s*(\d{1,3})(?:\.0+)?\s*(?:/\s*(\d{1,3}))?\s*")  # "8", "8.0", "8/10"


def _mark(rubric: Rubric, value: Any) -> int | Fault:
    if value is _CLASH:
        return Fault.AMBIGUOUS
    if isinstance(value, str) and (match := _WRITTEN_MARK.fullmatch(value)):
        if match[2] and int(match[2]) != rubric.high:
            return Fault.OUT_OF_RANGE
        value = int(match[1])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return Fault.NOT_WHOLE
    return value if 1 <= value <= rubric.high else Fault.OUT_OF_RANGE
