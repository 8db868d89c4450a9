"""How well answers keep to the length that was asked: `python eval/length_following_eval.py FILE`.

    python eval/length_following_eval.py results/eval/base/data.jsonl
    python eval/length_following_eval.py results/eval/base/data.jsonl --json

Needs nothing but Python 3.11. FILE holds one answer a row (self_lengthen/benchmark.py says in which
formats): LonGen's rows, or LongBench-Write's. All scores are points of 100:

    LonGen      share of 1 by the distance from the demanded band; mean over the answers
    S_L         LongWriter's; only where one number was asked (type "about", or a `length`)
    repeats     answers in which a window of 13 characters or 10 words occurs twice, and where in
                the answer that happens first, by tenths
    spread      standard deviation of the lengths of one question's samples, as a share of their
                mean; over the questions with several samples

Writes no file. A row that cannot be scored ends it with the row's number and exit status 2.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_lengthen.benchmark import Answer, read_answers  # noqa: E402
from self_lengthen.cli import Parser  # noqa: E402
from self_lengthen.errors import main_exit  # noqa: E402
from self_lengthen.scoring import (  # noqa: E402
    DEMAND_TYPES,
    band,
    first_repeat,
    length_score,
    longen_score,
    longwriter_words,
)
from self_lengthen.text import count_words  # noqa: E402

TENTHS = 10

Summary = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """An answer and its numbers; a score that its row does not ask for is None."""

    answer: Answer
    words: int  # count_words, of which LonGen's score is made
    longen: float | None  # 0 to 100
    s_l: float | None  # 0 to 100
    first_repeat: float | None  # share of the answer


def score(answer: Answer) -> Scored:
    words, demand, required = count_words(answer.response), answer.demand, answer.required_words
    return Scored(
        answer,
        words,
        None if demand is None else 100 * longen_score(words, band(demand)),
        None if required is None else length_score(required, longwriter_words(answer.response)),
        first_repeat(answer.response),
    )


def summarize(answers: Iterable[Answer]) -> Summary:
    """Everything that is said about a file: scores overall and by group, repeats, spread."""
    scored = [score(answer) for answer in answers]
    groups = {
        "type": [row.answer.demand.kind if row.answer.demand else "" for row in scored],
        "language": [row.answer.language for row in scored],
        "range": [row.answer.range for row in scored],
    }
    return {
        "overall": means(scored),
        "by": {name: _by(scored, labels) for name, labels in groups.items()},
        "repeats": repeats(scored),
        "spread": spread(scored),
    }


def means(scored: Sequence[Scored]) -> Summary:
    """Means over some answers, at least one."""
    count = len(scored)
    return {
        "answers": count,
        "longen": _mean(row.longen for row in scored),
        "s_l": _mean(row.s_l for row in scored),
        "words": _mean(row.words for row in scored),
        "empty_share": sum(not row.answer.response.strip() for row in scored) / count,
        "cut_share": sum(row.answer.cut for row in scored) / count,
    }


def _by(scored: Sequence[Scored], labels: Sequence[str]) -> dict[str, Summary]:
    """Means of each group; none where no row has a label."""
    order = {label: place for place, label in enumerate(DEMAND_TYPES)}
    names = sorted(set(labels) - {""}, key=lambda label: (order.get(label, 0), label))
    return {
        name: means([row for row, label in zip(scored, labels, strict=True) if label == name])
        for name in names
    }


def repeats(scored: Sequence[Scored]) -> Summary:
    places = [row.first_repeat for row in scored if row.first_repeat is not None]
    tenths = [0] * TENTHS
    for place in places:
        tenths[min(int(place * TENTHS), TENTHS - 1)] += 1
    return {"share": len(places) / len(scored), "first_in_tenth": tenths}


def spread(scored: Sequence[Scored]) -> Summary:
    """How much the lengths of one question's samples differ; None without several samples."""
    samples: dict[str, list[int]] = {}
    for row in scored:
        samples.setdefault(row.answer.id, []).append(row.words)
    several = [words for words in samples.values() if len(words) > 1 and any(words)]
    shares = [statistics.stdev(words) / statistics.fmean(words) for words in several]
    return {"questions": len(several), "mean_share": _mean(shares)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def table(summary: Summary) -> str:
    """The summary for a person, in fixed columns."""
    lines = [f"{'':<22}{'answers':>8}{'LonGen':>8}{'S_L':>8}{'words':>9}{'empty':>8}{'cut':>8}"]
    lines.append(_line("overall", summary["overall"]))
    for name, groups in summary["by"].items():
        lines += [_line(f"{name} {label}", group) for label, group in groups.items()]
    found = summary["repeats"]
    tenths = " ".join(map(str, found["first_in_tenth"]))
    lines.append(f"\nanswers that repeat themselves: {found['share']:.1%}")
    if found["share"]:
        lines.append(f"of which first in each tenth of the answer: {tenths}")
    if summary["spread"]["questions"]:
        share, questions = summary["spread"]["mean_share"], summary["spread"]["questions"]
        lines.append(f"spread of lengths between samples: {share:.1%} ({questions} questions)")
    return "\n".join(lines)


def _line(label: str, group: Summary) -> str:
    longen, s_l = ("-" if group[name] is None else f"{group[name]:.1f}" for name in _SCORES)
    columns = f"{group['answers']:>8}{longen:>8}{s_l:>8}{group['words']:>9,.0f}"
    return f"{label:<22}{columns}{group['empty_share']:>8.1%}{group['cut_share']:>8.1%}"


_SCORES = ("longen", "s_l")


def main() -> None:
    parser = Parser(description="How well answers keep to the length that was asked.")
    parser.add_argument("file", type=Path, metavar="FILE", help="answers: .jsonl, .json or .csv")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    args = parser.parse_args()
    summary = summarize(read_answers(args.file))
    print(json.dumps(summary, ensure_ascii=False, indent=2) if args.json else table(summary))


if __name__ == "__main__":
    main_exit("length_following_eval.py", main)
