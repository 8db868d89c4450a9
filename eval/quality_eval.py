"""Let a judge mark the quality of answers: LonGen's seven dimensions, or LongWriter's six.

    .venv/bin/python eval/quality_eval.py FILE --rubric=longwriter --base_url=URL --model=NAME \\
        --out=results/eval/iter3-quality            says what it would cost, and asks nothing
    ... --yes                                       asks

FILE holds answers, as eval/generate.py writes them. A reply that is no judgement is asked again
with another seed, then left out and counted by reason: no mark is guessed. Fewer judged answers
than --min_coverage are no result (exit status 1). Writes DIR/data.jsonl, the marks of each answer,
and DIR/summary.json; the same command continues after a stop. The prompts are
eval/prompts/judge_*.md.
"""

import argparse
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_lengthen.asking import (  # noqa: E402
    add_server_options,
    ask_all,
    claim,
    fingerprint,
    sampling_of,
    sampling_options,
)
from self_lengthen.attempts import Tried, first_accepted  # noqa: E402
from self_lengthen.benchmark import Answer, answer_of, checked, read_rows  # noqa: E402
from self_lengthen.cli import Parser, at_least, share  # noqa: E402
from self_lengthen.endpoint import ContextOverflowError  # noqa: E402
from self_lengthen.errors import RunError, main_exit  # noqa: E402
from self_lengthen.extension import call_seed  # noqa: E402
from self_lengthen.fanout import Outcome, Tally, summed  # noqa: E402
from self_lengthen.filters import Reason  # noqa: E402
from self_lengthen.judging import RUBRICS, Fault, Rubric, judge_prompt, read_judgement  # noqa: E402
from self_lengthen.runfolder import KeptRecords, StepFolder  # noqa: E402
from self_lengthen.scoring import length_score, longwriter_words  # noqa: E402

MAX_ATTEMPTS = 3  # per answer
# Rules of thumb for today's tokenizers, good enough for a cost.
CHARACTERS_PER_TOKEN = {"zh": 1.5, "en": 4.0}
S_Q_RUBRIC = "longwriter"  # S_Q is made of its marks from 1 to 5

Summary = dict[str, Any]


def estimate(prompts: Sequence[str], languages: Sequence[str], args: argparse.Namespace) -> str:
    """What the judge will read and at most write, and for how much: one line for a person."""
    characters = sum(map(len, prompts))
    per_token = (CHARACTERS_PER_TOKEN.get(language, 4.0) for language in languages)
    read = sum(len(prompt) / per for prompt, per in zip(prompts, per_token, strict=True))
    written = len(prompts) * args.max_tokens
    line = (
        f"{len(prompts):,} answers for {args.model}: {characters:,} characters, about {read:,.0f} "
        f"tokens to read and at most {written:,} to write, if none is asked twice"
    )
    if args.price_prompt or args.price_reply:
        cost = (read * args.price_prompt + written * args.price_reply) / 1e6
        line += f"; at most about {cost:,.2f} at these prices"
    return line


def judge_of(
    prompts: Sequence[str], rubric: Rubric, args: argparse.Namespace
) -> Callable[[Tally, int], Awaitable[Outcome]]:
    """The work of a unit: the marks of one answer."""
    sampling = sampling_of(args)

    async def judge(tally: Tally, unit: int) -> Outcome:
        name = f"row-{unit + 1}"

        async def attempt(number: int) -> Tried:
            seed = call_seed(args.seed, name, number)
            reply = await tally.chat(args.model, prompts[unit], sampling, seed=seed)
            read = read_judgement(rubric, reply.text, reply.finish_reason)
            if isinstance(read, Fault):
                return None, read
            row = {"row": unit + 1, "scores": read.scores, "analysis": read.analysis}
            return {**row, "attempt": number, "seed": seed}, None

        try:
            return Outcome(name, *await first_accepted(tally, attempt, MAX_ATTEMPTS), tally)
        except ContextOverflowError:
            return Outcome(name, None, Reason.CONTEXT, tally)

    return judge


def quality(
    marks: Iterable[Mapping[str, Any]], answers: Sequence[Answer], rubric: Rubric
) -> Summary:
    """Means over the judged answers: of each dimension, of all, and by language."""
    scores: dict[str, list[Mapping[str, int]]] = {}
    for mark in marks:
        scores.setdefault(answers[mark["row"] - 1].language, []).append(mark["scores"])
    everything = [row for rows in scores.values() for row in rows]
    summary = {"rubric": rubric.name, **_means(everything, rubric)}
    summary["by_language"] = {name: _means(rows, rubric) for name, rows in sorted(scores.items())}
    if rubric.name == S_Q_RUBRIC:
        summary |= _with_length(summary["s_q"], answers)
    return summary


def _means(scores: Sequence[Mapping[str, int]], rubric: Rubric) -> Summary:
    means = {name: statistics.fmean(row[name] for row in scores) for name in rubric.dimensions}
    summary: Summary = {"judged": len(scores), "mean": statistics.fmean(means.values())}
    if rubric.name == S_Q_RUBRIC:
        summary["s_q"] = (summary["mean"] - 1) * 25
    return {**summary, "dimensions": means}


def _with_length(s_q: float, answers: Sequence[Answer]) -> Summary:
    """LongWriter's overall score, where every answer has a required length."""
    required = [answer.required_words for answer in answers]
    if None in required:
        return {"s_l": None, "overall": None}
    s_l = statistics.fmean(
        length_score(words, longwriter_words(answer.response))
        for words, answer in zip(required, answers, strict=True)
    )
    return {"s_l": s_l, "overall": (s_l + s_q) / 2}


def finish(
    folder: StepFolder, answers: Sequence[Answer], rubric: Rubric, min_coverage: float
) -> None:
    """Write the marks and the summary. Raises RunError when too few answers were judged."""
    journal = folder.open_journal()
    sums = summed(journal.records())
    journal.close()
    kept = KeptRecords(journal.path)
    coverage = len(kept) / len(answers)
    if not kept or coverage < min_coverage:
        reasons = ", ".join(f"{name} {count}" for name, count in sums["dropped"].items())
        raise RunError(
            f"{len(kept)} of {len(answers)} answers were judged ({coverage:.1%}), fewer than "
            f"--min_coverage={min_coverage}: {reasons}; see {journal.path}, and ask another judge "
            "with --fresh"
        )
    units = {"in": len(answers), "kept": len(kept), "dropped": sums.pop("dropped")}
    summary = quality(kept.rows(), answers, rubric)
    folder.finish(kept.rows(), {**summary, "coverage": coverage, "units": units, **sums})


def judge_file(args: argparse.Namespace) -> None:
    """Raises UserError for a file or a folder that cannot be used, RunError for no result."""
    rubric = RUBRICS[args.rubric]
    answers = checked(args.file, read_rows(args.file), answer_of)
    prompts = [judge_prompt(rubric, row.language, row.question, row.response) for row in answers]
    print(estimate(prompts, [row.language for row in answers], args), file=sys.stderr)
    if not args.yes:
        print("nothing was asked: add --yes to ask", file=sys.stderr)
        return
    options = {**sampling_options(args), "rubric": rubric.name, "prompts": fingerprint(prompts)}
    folder = claim(args.out, args.fresh, options)
    if not folder.complete:
        ask_all("judgements", folder, len(prompts), judge_of(prompts, rubric, args), args)
        finish(folder, answers, rubric, args.min_coverage)
    print((folder.path / "summary.json").read_text(encoding="utf-8"), end="")


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    add, price = parser.add_argument, at_least(0, float)
    add("file", type=Path, metavar="FILE", help="answers: .jsonl, .json or .csv")
    add("--rubric", choices=RUBRICS, default="longen")
    add("--yes", action="store_true", help="ask the judge; without it, only the estimate")
    add("--min_coverage", type=share, default=0.95, help="share of answers that must be judged")
    add("--price_prompt", type=price, default=0.0, help="of a million tokens that the judge reads")
    add("--price_reply", type=price, default=0.0, help="of a million tokens that it writes")
    add_server_options(parser, "judge", temperature=0.5, repetition_penalty=1.0, max_tokens=1024)
    judge_file(parser.parse_args())


if __name__ == "__main__":
    main_exit("quality_eval.py", main)
