"""The report that a person looks at: does the run lengthen, what was dropped, what did it cost.

    python -m self_lengthen.report results/<run>

Reads run.json and what `plots` reads; writes report.md and plots/{growth,loss}.png beside run.json.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from self_lengthen import plots
from self_lengthen.cli import Parser
from self_lengthen.errors import UserError, main_exit
from self_lengthen.extension import MIN_GROWTH
from self_lengthen.files import write_atomic
from self_lengthen.plots import NOTHING, Iteration, number, percent, times

PHASES = ("serve", "step0", "step1", "step2", "step3", "step4", "stop_serving", "train")

MIN_ITERATION_GROWTH = 1.1  # ours: the paper sees about 2; less than a tenth may be chance
MIN_ACCEPTED = 0.1  # ours: below it one unit in eight (0.9^20) fails all of its 20 attempts

SAMPLES = {"Shorter quarter": 0.25, "Median": 0.5, "Longest": 1.0}  # {label: rank by length}
SAMPLE_CHARACTERS = 800  # of a sample text are shown
LINE_COLUMNS = 100  # of a sample text; a Chinese character takes two

GROWTH_NOTE = """\
Words of all texts that passed the response check, before `drop_short`. Extension factor: mean over
the pairs of extended / initial words. Ratio of means: mean extended / mean initial of these pairs.
"""
HOW_TO_READ = """\
Blue, what the Generator writes, should climb from iteration to iteration (the paper about doubles
it), and orange, what the Extender makes of it, should stand above blue and foretell the next blue.
If blue stays low beside a higher orange, look at the training loss and the rows kept in `sft`. If
extensions fall short or few attempts are accepted, look at the reasons and at the sample texts.
"""


class Finding(NamedTuple):
    """One clause of the verdict; `healthy` is None where it is too early to tell."""

    healthy: bool | None
    text: str


def write_report(run_dir: Path) -> Path:
    """Write report.md and the plots of what `run_dir` holds so far; returns report.md's path.

    Raises UserError when `run_dir` is no run's folder or a JSON file in it is broken.
    """
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{run_dir}: has no run.json; give the folder of a run, results/<run>")
    options = plots.read_json(run_dir / "run.json")["options"]
    iterations = plots.read_iterations(run_dir)
    gaps = [f"**{gap}**" for gap in find_gaps(iterations)]
    title = f"# Self-Lengthen: {options['base_model']} (family {options['family']})"
    parts = [title, verdict(iterations), progress(iterations)]
    parts += [plots.draw_growth(iterations, run_dir)]
    parts += ["## Growth", growth_table(iterations), GROWTH_NOTE]
    parts += ["## Acceptance", acceptance_table(iterations), *gaps]
    parts += ["## Cost", "Wall-clock seconds, all tries of a phase:", seconds_table(iterations)]
    parts += ["Tokens of the finished steps:", token_table(iterations)]
    parts += ["## Training loss", plots.draw_loss(iterations, run_dir), loss_table(iterations)]
    parts += ["## Sample texts", samples(iterations), "## How to read it", HOW_TO_READ]
    report = "\n\n".join(part.strip() for part in parts) + "\n"
    write_atomic(run_dir / "report.md", report)
    return run_dir / "report.md"


def verdict(iterations: Sequence[Iteration]) -> str:
    """One sentence: is the run healthy, and if not, first what is off."""
    findings = [find_growth(iterations), find_extension(iterations), find_acceptance(iterations)]
    findings += [Finding(False, gap) for gap in find_gaps(iterations)]
    if not any(it.complete for it in iterations):
        findings.insert(0, Finding(None, "no macro-iteration is complete yet"))
    answers = {finding.healthy for finding in findings}
    early = "Too early to tell" if None in answers else "Healthy"
    findings.sort(key=lambda finding: finding.healthy is not False)
    clauses = "; ".join(finding.text for finding in findings)
    return f"**{'Not healthy' if False in answers else early}:** {clauses}."


def find_growth(iterations: Sequence[Iteration]) -> Finding:
    """Whether what the Generator writes grows from each iteration to the next."""
    means = initial_means(iterations)
    if len(means) < 2:
        return Finding(None, "the Generator's growth shows from the second macro-iteration on")
    least, earlier, later = min((means[b] / means[a], a, b) for a, b in pairwise(means))
    first, *_, last = means.values()
    path = " → ".join(map(number, means.values()))
    detail = f"({path} words on average, {times(last / first)} first to last)"
    if least >= MIN_ITERATION_GROWTH:
        return Finding(True, f"the Generator grows from iteration to iteration {detail}")
    verb = "shrinks" if least < 1 else "hardly grows"
    return Finding(False, f"the Generator {verb} from iteration {earlier} to {later} {detail}")


def find_extension(iterations: Sequence[Iteration]) -> Finding:
    """Whether every accepted extension is long enough."""
    pairs = {it.number: it.pairs for it in iterations if it.pairs is not None}
    if not pairs:
        return Finding(None, "nothing has been extended yet")
    if empty := [str(n) for n, rows in pairs.items() if not rows.size]:
        return Finding(False, f"no extension was accepted in iteration {', '.join(empty)}")
    words, initial_words = np.concatenate(list(pairs.values())).T
    if short := np.count_nonzero(words < MIN_GROWTH * initial_words):
        return Finding(False, f"{short:,} of {words.size:,} extensions are below {MIN_GROWTH}x")
    return Finding(True, f"each of {words.size:,} extensions is at least {MIN_GROWTH}x")


def find_acceptance(iterations: Sequence[Iteration]) -> Finding:
    """How many attempts were accepted, and whether a step comes near to giving up."""
    tallies = {place: summary.get("attempts") for place, summary in summaries(iterations)}
    counts = {at: (n["accepted"], n["total"]) for at, n in tallies.items() if n and n["total"]}
    if not counts:
        return Finding(None, "no attempt has been counted yet")
    accepted, total = map(sum, zip(*counts.values(), strict=True))
    text = f"{percent(accepted / total)} of {total:,} attempts were accepted"
    worst, place = min((accepted / total, place) for place, (accepted, total) in counts.items())
    if worst < MIN_ACCEPTED:
        return Finding(False, f"{text}, only {percent(worst)} in {place}")
    return Finding(True, text)


def find_gaps(iterations: Sequence[Iteration]) -> Iterator[str]:
    """The steps that lost a unit: in = kept + dropped + failed + cut must hold to the last one."""
    for place, summary in summaries(iterations):
        units = summary["units"]
        fates = units["kept"] + sum(units["dropped"].values()) + units["failed"] + units["cut"]
        if fates != units["in"]:
            equation = f"{units['in']:,} units in, {fates:,} kept + dropped + failed + cut"
            yield f"accounting does not add up in {place}: {equation}"


def summaries(iterations: Sequence[Iteration]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each finished step's place, in words, and its summary."""
    for it in iterations:
        for step, summary in it.summaries.items():
            yield f"`{step}` of iteration {it.number}", summary


def initial_means(iterations: Sequence[Iteration]) -> dict[int, float]:
    """{iteration: words per accepted initial response}."""
    return {it.number: it.words["initial"].mean() for it in iterations if "initial" in it.words}


def progress(iterations: Sequence[Iteration]) -> str:
    text = f"Complete macro-iterations: {sum(it.complete for it in iterations)}."
    for it in iterations:
        if not it.complete:
            steps = ", ".join(f"`{step}`" for step in it.summaries) or "no step"
            text += f" Iteration {it.number} is not complete; it has finished {steps}."
    return text


def by_reason(tally: Mapping[str, int]) -> str:
    """The most frequent first: "drop_short 19, repetition 1"."""
    return ", ".join(f"{name} {n:,}" for name, n in Counter(tally).most_common() if n) or "–"


def table(header: str, rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table. Numbers are rounded and stand at the right; None becomes "–"."""

    def cell(value: Any) -> str:
        return "–" if value is None else value if isinstance(value, str) else number(value)

    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        return NOTHING
    columns = zip(*cells, strict=True)
    numeric = [all(re.match("[–0-9]", text) for text in column) for column in columns]
    lines = [["---:" if right else "---" for right in numeric], *cells]
    return "\n".join([f"| {header} |", *(f"| {' | '.join(line)} |" for line in lines)])


def growth_table(iterations: Sequence[Iteration]) -> str:
    means, rows = initial_means(iterations), []
    for it in iterations:
        for kind, words in it.words.items():
            low, median, high = np.quantile(words, (0.25, 0.5, 0.75))
            quartiles = f"{number(low)} to {number(high)}"
            row = [it.number, kind, words.size, words.mean(), median, quartiles, words.max()]
            if kind == "initial":
                row += [None, None, times(words.mean() / means[1]) if 1 in means else None]
            else:
                words, initial_words = it.pairs.T
                ratio = words.mean() / initial_words.mean()
                row += [times(np.mean(words / initial_words)), times(ratio), None]
            rows.append(row)
    header = "iteration | text | n | mean | median | quartiles | longest"
    return table(f"{header} | extension factor | ratio of means | growth since iteration 1", rows)


def acceptance_table(iterations: Sequence[Iteration]) -> str:
    rows = []
    for it in iterations:
        for step, summary in it.summaries.items():
            units, attempts = summary["units"], summary.get("attempts")
            fates = [units["kept"], by_reason(units["dropped"]), units["failed"], units["cut"]]
            tries = [None, None, None]
            if attempts:
                total, rejected = attempts["total"], by_reason(attempts["rejected"])
                tries = [total, percent(attempts["accepted"] / total) if total else None, rejected]
            rows.append([it.number, step, units["in"], *fates, *tries])
    header = "iteration | step | units in | kept | dropped by reason | failed | cut"
    return table(f"{header} | attempts | accepted | rejected by reason", rows)


def seconds_table(iterations: Sequence[Iteration]) -> str:
    timed = {it.number: it.seconds for it in iterations if it.seconds}
    phases = [phase for phase in PHASES if any(phase in spent for spent in timed.values())]
    rows = [[n, *map(spent.get, phases), spent.total()] for n, spent in timed.items()]
    return table(" | ".join(["iteration", *phases, "total"]), rows)


def token_table(iterations: Sequence[Iteration]) -> str:
    rows = []
    for it in iterations:
        spent = {step: s["tokens"] for step, s in it.summaries.items() if "tokens" in s}
        tokens = {step: (t["prompt"], t["completion"]) for step, t in spent.items()}
        for step, pair in tokens.items():
            idle = it.summaries[step].get("idle_share")
            idle_text = None if idle is None else percent(idle)
            rows.append([it.number, step, *pair, None, None, idle_text])
        if "extended" in it.words:
            prompt, completion = map(sum, zip(*tokens.values(), strict=True))
            words = it.words["extended"].sum()
            per_word = f"{completion / words:.2f}", f"{(prompt + completion) / words:.2f}"
            rows.append([it.number, "all of these", prompt, completion, *per_word, None])
    header = "iteration | step | prompt | completion | completion per extended word"
    return table(f"{header} | all per extended word | engine idle", rows)


def loss_table(iterations: Sequence[Iteration]) -> str:
    rows = []
    for role in plots.ROLES.values():
        for it in iterations:
            if curve := it.losses.get(role):
                points = [(step, f"{curve[step]:.3f}") for step in (min(curve), max(curve))]
                rows.append([role, it.number, *points[0], *points[1]])
    return table("role | iteration | first step | loss | last step | loss", rows)


def samples(iterations: Sequence[Iteration]) -> str:
    """Up to three extensions of the last iteration that has any, each below what it was made of."""
    extended = [it for it in iterations if "extended" in it.words]
    if not extended:
        return NOTHING
    order = np.argsort(extended[-1].words["extended"], kind="stable")
    labels = {int(order[round(rank * (order.size - 1))]): label for label, rank in SAMPLES.items()}
    rows = extended[-1].accepted_rows("extended_responses")
    picked = {index: row for index, row in enumerate(rows) if index in labels}
    texts = [sample(label, picked[index]) for index, label in labels.items()]
    return "\n\n".join([f"From iteration {extended[-1].number}, chosen by length alone.", *texts])


def sample(label: str, row: Mapping[str, Any]) -> str:
    words, initial_words = row["words"], row["initial_words"]
    title = f"### {label}: {initial_words:,} → {words:,} words ({times(words / initial_words)})"
    parts = [title, "Instruction:", quote(row["instruction"])]
    parts += ["Initial:", quote(row["initial"], initial_words)]
    return "\n\n".join([*parts, "Extended:", quote(row["response"], words)])


def quote(text: str, words: int | None = None) -> str:
    """The beginning of a text of so many words as a code block, so that no markup in it counts."""
    note = ""
    if len(text) > SAMPLE_CHARACTERS:
        # Without a word that is cut itself; Chinese may be cut anywhere.
        text = re.sub("[!-~]+$", "", text[:SAMPLE_CHARACTERS]).rstrip()
        note = " …" if words is None else f" … ({words:,} words in all)"
    columns = LINE_COLUMNS // 2 if re.search("[\u3000-\u9fff]", text) else LINE_COLUMNS
    wrapped = "\n".join(textwrap.fill(line, columns) for line in text.splitlines())
    fence = max(["``", *re.findall("`+", text)], key=len) + "`"
    return f"{fence}\n{wrapped}{note}\n{fence}"


def main() -> None:
    parser = Parser(prog="python -m self_lengthen.report", description=__doc__.splitlines()[0])
    parser.add_argument("results_dir", type=Path, help="the run's folder, results/<run>")
    results_dir = parser.parse_args().results_dir
    try:
        print(write_report(results_dir))
    except OSError as error:
        raise UserError(f"{error}: the report of {results_dir} cannot be written") from error


if __name__ == "__main__":
    main_exit("report", main)
