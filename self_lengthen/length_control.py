"""A demand of length for every query, which the query's text meets: data that teach to obey.

    python eval/add_length_control.py results/<run>/data/long.jsonl --base_url=http://HOST:PORT/v1

Reads JSON lines with query and response. For each text within the bounds a demand is drawn, and a
served model weaves it into the query; what it writes is checked and tried again, and dropped with
its reason when no attempt is right. Prompts: eval/prompts/add_length_{zh,en}.md. Writes below
--output: journal.jsonl, data.jsonl {language, range, type, constraint, query, response, ...},
summary.json and, last, manifest.json; the same command continues. OPENAI_API_KEY is the key.
"""

import argparse
import logging
import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from self_lengthen.attempts import Tried, first_accepted
from self_lengthen.cli import Parser, at_least
from self_lengthen.constraints import (
    TYPES,
    Constraint,
    Language,
    LengthRules,
    draw_constraint,
    language_of,
    range_label,
)
from self_lengthen.endpoint import ContextOverflowError, Endpoint, Sampling
from self_lengthen.errors import UserError
from self_lengthen.extension import call_seed
from self_lengthen.family import REPO_ROOT
from self_lengthen.fanout import Counts, Outcome, Tally, summed
from self_lengthen.files import Lines, Row
from self_lengthen.rewriting import Reason, check_rewriting, tidy
from self_lengthen.runfolder import BASE_MODEL, KeptRecords, StepFolder
from self_lengthen.steps.common import Asking, ask_all
from self_lengthen.text import count_words

PROMPTS = REPO_ROOT / "eval" / "prompts"
COPIED = ("id", "source", "iteration", "model")  # provenance of the text, where it has any
DEFAULTS = LengthRules()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A text and the demand that was drawn for it."""

    name: str
    row: Row
    language: Language
    words: int
    constraint: Constraint
    demand: str  # the constraint as the model is told it: in numerals, perhaps


@dataclass(frozen=True)
class Rewriter:
    """One row after the other: draw a demand, have it woven in, check."""

    rows: Lines
    rules: LengthRules
    model: str
    sampling: Sampling
    attempts: int
    seed: int
    prompts: Mapping[str, str]

    async def work(self, tally: Tally, unit: int) -> Outcome:
        row = self.rows[unit]
        name = str(row.get("id", f"row-{unit}"))
        task = self._task(name, row)
        if isinstance(task, Reason):
            return Outcome(name, None, task, tally)
        attempt = partial(self._attempt, tally, task)
        try:
            return Outcome(name, *await first_accepted(tally, attempt, self.attempts), tally)
        except ContextOverflowError:
            return Outcome(name, None, Reason.CONTEXT, tally)

    def _task(self, name: str, row: Row) -> Task | Reason:
        """The demand for a row, or why it gets none."""
        words, language = count_words(row["response"]), language_of(row["response"])
        if words < self.rules.min_words:
            return Reason.TOO_SHORT
        if words >= self.rules.max_words:
            return Reason.TOO_LONG
        if language_of(row["query"]) != language:
            return Reason.LANGUAGES_DIFFER
        rng = random.Random(f"{self.seed}/{name}/length")
        constraint = draw_constraint(words, self.rules, rng)
        spelled = language == "zh" and rng.random() < self.rules.numerals_share
        demand = constraint.say(language, spelled=spelled)
        return Task(name, row, language, words, constraint, demand)

    async def _attempt(self, tally: Tally, task: Task, attempt: int) -> Tried:
        before, _, rest = self.prompts[task.language].partition("{constraint}")
        between, _, after = rest.partition("{instruction}")
        prompt = before + task.demand + between + task.row["query"] + after
        seed = call_seed(self.seed, task.name, attempt)
        reply = await tally.chat(self.model, prompt, self.sampling, seed=seed)
        query, asked = tidy(reply.text), task.row["query"]
        checked = task.constraint, task.language, reply.finish_reason
        reason = check_rewriting(asked, query, *checked)
        return (None, reason) if reason else (self._row(task, query, attempt), None)

    def _row(self, task: Task, query: str, attempt: int) -> Row:
        return {
            "language": task.language,
            "range": range_label(task.words, self.rules),
            "type": task.constraint.type,
            "constraint": task.constraint.say(task.language),
            "query": query,
            "response": task.row["response"],
            "words": task.words,
            "demand": task.demand,
            "asked_before": task.row["query"],
            **{name: task.row[name] for name in COPIED if name in task.row},
            "rewriter": self.model,
            "attempt": attempt,
            "seed": call_seed(self.seed, task.name, attempt),
        }


def read_prompts(folder: Path) -> dict[str, str]:
    """{language: prompt}. Raises UserError when one is missing or lacks a slot, in its order."""
    prompts = {}
    for language in ("zh", "en"):
        file = folder / f"add_length_{language}.md"
        try:
            prompts[language] = file.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot read this prompt ({error})") from error
        _, found, rest = prompts[language].partition("{constraint}")
        if not found or "{instruction}" not in rest:
            raise UserError(f"{file}: needs {{constraint}} and, after it, {{instruction}}")
    return prompts


def read_input(path: Path) -> Lines:
    """The rows, each looked at once. Raises UserError that names the first wrong one."""
    try:
        rows = Lines(path)
        for number in range(len(rows)):
            row = rows[number]
            for name in ("query", "response"):
                if not isinstance(row, dict) or not isinstance(row.get(name), str):
                    raise UserError(f'{path}:{number + 1}: has no text under "{name}"')
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}:{number + 1}: is not JSON ({error})") from error
    return rows


def shares(text: str) -> dict[str, float]:
    """An argparse type: "name:share,..." whose shares make 1."""
    pairs = [part.partition(":") for part in text.split(",")]
    found = {name.strip(): float(share) for name, _, share in pairs}
    if len(found) < len(pairs) or min(found.values()) < 0 or abs(sum(found.values()) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text}: the shares must be different and make 1")
    return found


def steps(text: str) -> dict[int, float]:
    """An argparse type: "words:share,..."."""
    found = {int(words): share for words, share in shares(text).items()}
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: rounds to less than 1 word")
    return found


def types(text: str) -> dict[str, float]:
    """An argparse type: "about:0.4,..." of the four types."""
    found = shares(text)
    if not found.keys() <= set(TYPES):
        raise argparse.ArgumentTypeError(f"{text}: the types are {', '.join(TYPES)}")
    return found


def probability(text: str) -> float:
    """An argparse type: 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1]")
    return value


def spelled_out(values: Mapping[object, float]) -> str:
    return ",".join(f"{name}:{share:g}" for name, share in values.items())


def parser() -> Parser:
    parser = Parser(prog="add_length_control.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("input", type=Path, help="JSON lines with query and response, as collect_data.py writes")
    add("--output", type=Path, help="folder (default: length_control/ beside the input)")
    add("--base_url", required=True, help="of an OpenAI-compatible server, ends in /v1")
    add("--model", default=BASE_MODEL, help="its name there (default %(default)s)")
    add("--min_words", type=at_least(1), default=DEFAULTS.min_words, help="of a text (%(default)s)")
    add("--max_words", type=at_least(2), default=DEFAULTS.max_words, help="exclusive (%(default)s)")
    rounding, mix = spelled_out(DEFAULTS.round_to), spelled_out(DEFAULTS.mix)
    add("--round_to", type=steps, default=dict(DEFAULTS.round_to), help=f"default {rounding}")
    add("--mix", type=types, default=dict(DEFAULTS.mix), help=f"default {mix}")
    numerals = DEFAULTS.numerals_share
    add("--numerals_share", type=probability, default=numerals, help="三千 for 3000 (%(default)s)")
    add("--attempts", type=at_least(1), default=10, help="a row (default %(default)s)")
    add("--max_tokens", type=at_least(1), default=1024, help="of a query (default %(default)s)")
    add("--concurrency", type=at_least(1), default=128, help="rows in flight (%(default)s)")
    add("--seed", type=int, default=42, help="of every random choice (default %(default)s)")
    return parser


def length_rules(args: argparse.Namespace) -> LengthRules:
    if args.min_words >= args.max_words:
        raise UserError(f"--min_words={args.min_words}: is not below --max_words={args.max_words}")
    return LengthRules(args.min_words, args.max_words, args.round_to, args.mix, args.numerals_share)


def main() -> None:
    args = parser().parse_args()
    rules, rows, prompts = length_rules(args), read_input(args.input), read_prompts(PROMPTS)
    folder = StepFolder(args.output or args.input.parent / "length_control")
    sampling = Sampling(max_tokens=args.max_tokens)
    rewriter = Rewriter(rows, rules, args.model, sampling, args.attempts, args.seed, prompts)
    claim(folder, rewriter)
    if not folder.complete:
        endpoint = Endpoint(args.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
        ask = Asking("length control", folder, endpoint, args.concurrency)
        finish(folder, *ask_all(ask, len(rows), rewriter.work))
    print(folder.data)


def claim(folder: StepFolder, rewriter: Rewriter) -> None:
    """Note what the rows depend on, the demands above all."""
    rules = rewriter.rules
    given = {
        "rows": len(rewriter.rows),
        "model": rewriter.model,
        "attempts": rewriter.attempts,
        "max_tokens": rewriter.sampling.max_tokens,
        "seed": rewriter.seed,
        "min_words": rules.min_words,
        "max_words": rules.max_words,
        "round_to": spelled_out(rules.round_to),
        "mix": spelled_out(rules.mix),
        "numerals_share": rules.numerals_share,
    }
    try:
        folder.claim(given, "another --output")
    except OSError as error:
        raise UserError(f"--output={folder.path}: cannot be written ({error.strerror})") from error


def finish(folder: StepFolder, counts: Counts, seconds: float) -> None:
    """Write the rows in the order of the input, and what became of every row."""
    journal = folder.open_journal()
    sums = summed(journal.records())
    journal.close()
    kept = KeptRecords(journal.path)
    made = Counter(f"{row['language']} {row['type']}" for row in kept.rows())
    units = {
        "in": counts.total,
        "kept": len(kept),
        "dropped": sums.pop("dropped"),
        "failed": counts.failed,
        "cut": counts.cut,
    }
    told = {"step": "length_control", "units": units, "seconds": round(seconds, 2)}
    folder.finish(kept.rows(), {**told, "kept_by_type": dict(sorted(made.items())), **sums})
    reasons = ", ".join(f"{name} {n:,}" for name, n in Counter(units["dropped"]).most_common())
    log.info("%d of %d rows kept; dropped: %s", len(kept), counts.total, reasons or "none")
