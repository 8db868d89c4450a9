"""The conversations that state one length and keep to it: LongWriter-6K's two strategies.

    python eval/filter_by_length.py long.jsonl --output=filtered.jsonl

Strategy 1 keeps rows whose first user message states exactly one required length; strategy 2 those
whose answer then scores S_L >= --min_score (80: 0.714 to 1.6 times what is required), in
LongWriter's own words. Reads query/response, alpaca, sharegpt or messages; writes the kept rows as
they were, with required_words, words and length_score added. --rules=published reads lengths by the
simple patterns of the published filter (6,000 -> 1,748 -> 666 rows of LongWriter-6K) instead.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from self_lengthen.cli import Parser
from self_lengthen.errors import UserError
from self_lengthen.files import Row, write_rows
from self_lengthen.lengths import published_lengths, stated_length
from self_lengthen.scoring import length_score, longwriter_words
from self_lengthen.training.conversations import Conversation, Rows

MIN_SCORE = 80.0  # of S_L; the published filter's


class Fate(StrEnum):
    """What became of a row."""

    KEPT = "kept"
    NO_CONVERSATION = "no_conversation"
    NOT_ONE_LENGTH = "not_one_length"  # states none, or several
    EMPTY_ANSWER = "empty_answer"
    LOW_SCORE = "low_score"


def required_words(text: str, words: int) -> int | None:
    """The one length that `text` states, None when it states none or several.

    Of a range or a limit, the length within it that is nearest to `words`.
    """
    demand = stated_length(text)
    return demand.nearest(words) if demand else None


def published_required_words(text: str, words: int) -> int | None:
    """As the published rules have it."""
    lengths = published_lengths(text)
    return lengths[0] if len(lengths) == 1 else None


RULES: dict[str, Callable[[str, int], int | None]] = {
    "full": required_words,
    "published": published_required_words,
}


def judge(turns: Conversation | None, rules: str, min_score: float) -> tuple[Fate, Row]:
    """What becomes of a conversation, and the fields that a kept row gains."""
    if turns is None:
        return Fate.NO_CONVERSATION, {}
    asked = next(turn["content"] for turn in turns if turn["role"] == "user")
    answer = next(turn["content"] for turn in turns if turn["role"] == "assistant")
    words = longwriter_words(answer)
    required = RULES[rules](asked, words)
    if required is None:
        return Fate.NOT_ONE_LENGTH, {}
    if not required or not words:
        return Fate.EMPTY_ANSWER, {}
    score = length_score(required, words)
    gained = {"required_words": required, "words": words, "length_score": round(score, 2)}
    return (Fate.KEPT if score >= min_score else Fate.LOW_SCORE), gained


def kept_rows(rows: Rows, rules: str, min_score: float, fates: Counter[Fate]) -> Iterator[Row]:
    """Counts the fate of every row on the way."""
    for number in range(len(rows)):
        fate, gained = judge(rows[number], rules, min_score)
        fates[fate] += 1
        if fate is Fate.KEPT:
            yield {**rows.raw(number), **gained}


def table(fates: Counter[Fate]) -> str:
    """Rows left after each strategy, and why the others went."""
    total = fates.total()
    stated = fates[Fate.KEPT] + fates[Fate.LOW_SCORE] + fates[Fate.EMPTY_ANSWER]
    lines = [f"{total:>9,}  rows", f"{stated:>9,}  state exactly one length"]
    lines.append(f"{fates[Fate.KEPT]:>9,}  keep to it")
    others = (f"{fate} {count:,}" for fate, count in fates.most_common() if fate is not Fate.KEPT)
    return "\n".join([*lines, f"dropped: {', '.join(others) or 'none'}"])


def score(text: str) -> float:
    """An argparse type: 0 to 100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 100]")
    return value


def main() -> None:
    parser = Parser(prog="filter_by_length.py", description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path, help="JSON lines, or a JSON list")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    parser.add_argument("--rules", choices=RULES, default="full", help="default %(default)s")
    parser.add_argument("--min_score", type=score, default=MIN_SCORE, help="0: strategy 1 alone")
    args = parser.parse_args()
    rows, fates = Rows(args.input), Counter()
    if args.output.exists() and args.output.samefile(args.input):
        raise UserError(f"--output={args.output}: is the input; give another file")
    try:
        write_rows(args.output, kept_rows(rows, args.rules, args.min_score, fates))
    except OSError as error:
        raise UserError(f"--output={args.output}: cannot be written ({error.strerror})") from error
    print(table(fates))
    print(args.output)
