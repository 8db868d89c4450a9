"""All texts of a run as one data set of (query, response), each pair once.

    python collect_data.py [--results=results/<run>] [--output=DIR]

Reads the finished steps of every macro-iteration (initial and extended responses) and of every
round of collection; what is not finished is left out and named. Writes below results/<run>/data/:

    long.jsonl          {id, query, response, words, source, iteration, role, model} a line
    README.md           card of a Hugging Face data set: load_dataset("results/<run>/data")
    llamafactory/       alpaca.jsonl, sharegpt.jsonl, dataset_info.json
    summary.json        what came from where; written last

Needs nothing but Python. The texts are read twice and never held.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from self_lengthen.cli import Parser
from self_lengthen.errors import UserError
from self_lengthen.files import Row, read_rows, write_atomic, write_json, write_rows
from self_lengthen.repeats import Repeats
from self_lengthen.runfolder import EXTENDED, INITIAL, RunFolder, StepFolder, newest_run

RESULTS = Path("results")
CARD = """\
---
language:
- {language}
pretty_name: Long texts of {model}
task_categories:
- text-generation
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: long.jsonl
---

# Long texts of {model}

{rows:,} pairs of a query and its response, both written by {model} and its adapters in \
{iterations} macro-iterations of Self-Lengthen (arXiv 2410.23933).

| source | iteration | rows | words on average |
| --- | ---: | ---: | ---: |
{table}

`words` counts Chinese characters, punctuation included, and other words. `source` is `initial` (the
Generator's answers), `extended` (the Extender's longer versions of them) or `collected` (answers of
the last Generator, after the last macro-iteration). `model` is `base` or the adapter that wrote the
response; `iteration` is the one in which it was served.
"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGER = "1M<n<10M"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One finished step whose texts belong to the data set."""

    kind: str  # initial | extended | collected
    role: str  # generator | extender
    folder: StepFolder

    def rows(self) -> Iterator[Row]:
        for row in read_rows(self.folder.data):
            yield {
                "id": row["id"],
                "query": row["instruction"],
                "response": row["response"],
                "words": row["words"],
                "source": self.kind,
                "iteration": row["iteration"],
                "role": self.role,
                "model": row["model"],
            }


def sources(run: RunFolder, say: Callable[[str], None]) -> list[Source]:
    """The finished steps in order; `say` hears of each that is not."""
    found = []
    for number in run.iterations():
        found.append(Source("initial", "generator", run.step(number, INITIAL)))
        found.append(Source("extended", "extender", run.step(number, EXTENDED)))
    for number in run.rounds():
        found.append(Source("collected", "generator", run.round(number).step(INITIAL)))
    for source in found:
        if not source.folder.complete:
            say(f"left out, as it is not finished: {source.folder.path}")
    return [source for source in found if source.folder.complete]


def pair_digest(row: Row) -> bytes:
    """Equal for equal pairs; 128 bits, so that no two others are ever taken for equal."""
    pair = f"{len(row['query'])} {row['query']}{row['response']}"
    return hashlib.blake2b(pair.encode(), digest_size=16).digest()


class DataSet:
    """The rows of all sources without the repeated pairs, and their counts while they pass."""

    def __init__(self, parts: list[Source]) -> None:
        self.parts = parts
        self.rows_of: Counter[tuple[str, int]] = Counter()
        self.words_of: Counter[tuple[str, int]] = Counter()
        self.duplicates: Counter[tuple[str, int]] = Counter()

    def rows(self) -> Iterator[Row]:
        """Reads everything twice: once for what may occur twice."""
        repeats = Repeats(pair_digest(row) for part in self.parts for row in part.rows())
        for row in (row for part in self.parts for row in part.rows()):
            place = row["source"], row["iteration"]
            if repeats.seen(pair_digest(row)):
                self.duplicates[place] += 1
                continue
            self.rows_of[place] += 1
            self.words_of[place] += row["words"]
            yield row

    def summary(self) -> list[Row]:
        """A row for each source and iteration, in the order in which they came."""
        places = dict.fromkeys([*self.rows_of, *self.duplicates])
        return [
            {
                "source": place[0],
                "iteration": place[1],
                "rows": self.rows_of[place],
                "duplicates": self.duplicates[place],
                "words_mean": round(self.words_of[place] / max(1, self.rows_of[place]), 1),
            }
            for place in places
        ]


def write_data_set(run: RunFolder, output: Path, say: Callable[[str], None]) -> Row:
    """Write all files; the summary. Raises UserError when the run has no finished step."""
    parts = sources(run, say)
    if not parts:
        raise UserError(f"{run.path}: no step is finished yet; there is no text to collect")
    (output / "summary.json").unlink(missing_ok=True)
    data_set = DataSet(parts)
    long = output / "long.jsonl"
    count = write_rows(long, data_set.rows())
    write_exports(long, output / "llamafactory")
    summary = {"rows": count, "sources": data_set.summary()}
    write_atomic(output / "README.md", card(run, summary))
    write_json(output / "summary.json", summary)
    return summary


def write_exports(long: Path, folder: Path) -> None:
    """The same pairs in LLaMA-Factory's two formats, with its index."""
    write_rows(folder / "alpaca.jsonl", map(alpaca, read_rows(long)))
    write_rows(folder / "sharegpt.jsonl", map(sharegpt, read_rows(long)))
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    write_json(
        folder / "dataset_info.json",
        {
            "long_alpaca": {"file_name": "alpaca.jsonl", "columns": columns},
            "long_sharegpt": {
                "file_name": "sharegpt.jsonl",
                "formatting": "sharegpt",
                "columns": {"messages": "conversations"},
            },
        },
    )


def alpaca(row: Row) -> Row:
    return {"instruction": row["query"], "input": "", "output": row["response"]}


def sharegpt(row: Row) -> Row:
    turns = (("human", row["query"]), ("gpt", row["response"]))
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def card(run: RunFolder, summary: Row) -> str:
    from self_lengthen.family import load_family

    lines = [
        f"| {part['source']} | {part['iteration']} | {part['rows']:,} | {part['words_mean']:,} |"
        for part in summary["sources"]
    ]
    return CARD.format(
        language=load_family(run.options["family"]).language,
        model=Path(run.options["base_model"]).name,
        size=next((name for limit, name in SIZES if summary["rows"] < limit), LARGER),
        rows=summary["rows"],
        iterations=len(run.iterations()),
        table="\n".join(lines),
    )


def counts_table(summary: Row) -> str:
    """What came from where, for a person."""
    columns = ("source", "iteration", "rows", "duplicates", "words_mean")
    lines = [("source", "iteration", "rows", "duplicates", "words on average")]
    lines += [tuple(f"{part[name]}" for name in columns) for part in summary["sources"]]
    total = sum(part["duplicates"] for part in summary["sources"])
    lines.append(("all", "", f"{summary['rows']}", f"{total}", ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join("  ".join(cells) for cells in padded)


def main() -> None:
    parser = Parser(prog="collect_data.py", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="folder of the run (default: the newest)")
    parser.add_argument("--output", type=Path, help="default: data/ in the folder of the run")
    args = parser.parse_args()
    run = RunFolder(args.results) if args.results else newest_run(RESULTS)
    _ = run.options  # refuses what is no run
    if args.results is None:
        log.info("the newest run: %s", run.path)
    output = args.output or run.path / "data"
    try:
        summary = write_data_set(run, output, log.warning)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error})") from error
    print(counts_table(summary))
    print(output / "long.jsonl")
