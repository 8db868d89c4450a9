"""Answer a benchmark with a served model: fills the `response` of every row.

    .venv/bin/python eval/generate.py --base_url=http://127.0.0.1:8000/v1 --model=gen_sft-iter3 \\
        --benchmark=eval/prompts/longen_own.jsonl --out=results/eval/iter3

The benchmark is a file (JSON lines, a JSON list, CSV), or what datasets.load_dataset takes: a
folder or the name of a public data set. Each row has its question under `query` or `prompt`, its
other fields are kept. Writes DIR/data.jsonl, a row per answer, and DIR/summary.json; the same
command continues after a stop. Temperature 0.5 and repetition_penalty 1.1 are LongWriter's.
"""

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_lengthen.asking import (  # noqa: E402
    add_server_options,
    ask_all,
    claim,
    fingerprint,
    sampling_of,
    sampling_options,
)
from self_lengthen.benchmark import SUFFIXES, NumberedRow, checked, question_of  # noqa: E402
from self_lengthen.benchmark import read_rows as read_file  # noqa: E402
from self_lengthen.cli import Parser, at_least  # noqa: E402
from self_lengthen.errors import UserError, main_exit  # noqa: E402
from self_lengthen.extension import call_seed  # noqa: E402
from self_lengthen.fanout import Outcome, Tally, summed  # noqa: E402
from self_lengthen.files import Row  # noqa: E402
from self_lengthen.runfolder import KeptRecords, StepFolder  # noqa: E402
from self_lengthen.text import count_words  # noqa: E402


def read_benchmark(source: str, split: str | None) -> list[Row]:
    """The rows of a file or a data set, each with an `id` of its own. Raises UserError."""
    path = Path(source)
    if path.suffix in SUFFIXES:
        rows = read_file(path)
    else:
        rows = [NumberedRow(number, row) for number, row in enumerate(_data_set(source, split), 1)]
    checked(path, rows, question_of)
    with_ids = [
        {**numbered.row, "id": str(numbered.row.get("id") or numbered.number)} for numbered in rows
    ]
    if len({row["id"] for row in with_ids}) < len(with_ids):
        raise UserError(f"{source}: two rows have the same id; give each question its own")
    return with_ids


def _data_set(source: str, split: str | None) -> list[Row]:
    import datasets  # slow to import, and only needed here

    try:
        found = datasets.load_dataset(source)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--benchmark={source}: is no file, and no data set: {reason}") from error
    names = list(found)
    chosen = split or ("test" if "test" in names else names[0])
    if chosen not in names or (split is None and chosen != "test" and len(names) > 1):
        raise UserError(f"--benchmark={source}: give --split, one of {', '.join(names)}")
    return list(found[chosen])


def generate(args: argparse.Namespace) -> StepFolder:
    """Raises UserError for rows or a folder that cannot be used, RunError for a failing server."""
    rows = read_benchmark(args.benchmark, args.split)
    questions = fingerprint([question_of(row) for row in rows])
    options = {**sampling_options(args), "samples": args.samples, "questions": questions}
    folder = claim(args.out, args.fresh, options)
    if not folder.complete:
        counts = ask_all("answers", folder, args.samples * len(rows), answerer(rows, args), args)
        _finish(folder, counts.total)
    return folder


def answerer(
    rows: Sequence[Row], args: argparse.Namespace
) -> Callable[[Tally, int], Awaitable[Outcome]]:
    """The work of a unit: one sample of the answer to one row."""
    sampling = sampling_of(args)

    async def answer(tally: Tally, unit: int) -> Outcome:
        number, sample = divmod(unit, args.samples)
        row = rows[number]
        name = f"{row['id']}-s{sample}"
        seed = call_seed(args.seed, name)
        reply = await tally.chat(args.model, question_of(row), sampling, seed=seed)
        tally.accepted += 1
        answered = {
            **row,
            "response": reply.text,
            "sample": sample,
            "words": count_words(reply.text),
            "finish_reason": reply.finish_reason,
            "model": args.model,
            "seed": seed,
        }
        return Outcome(name, answered, None, tally)

    return answer


def _finish(folder: StepFolder, total: int) -> None:
    journal = folder.open_journal()
    tokens = summed(journal.records())["tokens"]
    journal.close()
    kept = KeptRecords(journal.path)
    folder.finish(kept.rows(), {"units": {"in": total, "kept": len(kept)}, "tokens": tokens})


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--benchmark", required=True, help="a file, a folder or a data set's name")
    parser.add_argument("--split", help="of a data set; default: test, or the only one")
    parser.add_argument("--samples", type=at_least(1), default=1, help="answers per question")
    add_server_options(
        parser, "model that answers", temperature=0.5, repetition_penalty=1.1, max_tokens=16384
    )
    print(generate(parser.parse_args()).data)


if __name__ == "__main__":
    main_exit("generate.py", main)
