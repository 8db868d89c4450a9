"""Time and memory of collect_data.py by the number of rows; each size in a process of its own.

    python bench/collect_data.py [--rows=1000,100000] [--words=200]

Needs nothing but Python. Writes a run of so many texts (one in a hundred twice) into a temporary
folder and prints a table.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_lengthen.collect_data import write_data_set  # noqa: E402
from self_lengthen.files import Row, write_json, write_rows  # noqa: E402
from self_lengthen.runfolder import INITIAL, RunFolder  # noqa: E402

TWICE = 100  # every so many rows, the row before comes again


def texts(rows: int, words: int) -> Iterator[Row]:
    for number in range(rows):
        name = number - 1 if number % TWICE == TWICE - 1 else number
        text = f"word{name} " * words
        row = {"id": f"q{number}", "instruction": f"Write {name}.", "response": text}
        yield {**row, "words": words, "iteration": 1, "model": "base"}


def measure(rows: int, words: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        write_json(run.path / "run.json", {"options": {"family": "llama", "base_model": "m"}})
        step = run.step(1, INITIAL)
        write_rows(step.data, texts(rows, words))
        write_json(step.path / "manifest.json", {"rows": rows})
        size_mb = step.data.stat().st_size / 1e6
        started = time.process_time()
        kept = write_data_set(run, run.path / "data", lambda _: None)["rows"]
        seconds = time.process_time() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {rows:,} | {size_mb:,.0f} | {kept:,} | {seconds:.1f} | {peak_mib:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1000,100000", help="sizes (default %(default)s)")
    parser.add_argument("--words", type=int, default=200, help="a text (default %(default)s)")
    args = parser.parse_args()
    sizes = args.rows.split(",")
    if len(sizes) == 1:
        print(measure(int(sizes[0]), args.words))
        return
    print("| rows | MB in | rows kept | CPU seconds | peak MiB |")
    print("| ---: | ---: | ---: | ---: | ---: |", flush=True)
    for size in sizes:
        command = [sys.executable, __file__, f"--rows={size}", f"--words={args.words}"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
