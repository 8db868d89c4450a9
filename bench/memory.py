"""Memory of step 0 on a dry source: 1e3 to 1e6 instructions, each size in a process of its own.

    .venv/bin/python bench/memory.py [--sizes=1000,10000,100000,1000000]

The source answers at once, without a model: what is measured is everything of ours that could grow
with the number of units - what is taken, the pool of examples, the units in flight, the journal,
the sorting of its rows. Prints a table; writes into a temporary folder only.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = (1_000, 10_000, 100_000, 1_000_000)
CONCURRENCY = 128
FAMILY = "qwen"  # its pool of examples grows with what is accepted


def measure(size: int) -> dict[str, float]:
    """One step 0 of so many instructions, in this process."""
    from self_lengthen import fanout
    from self_lengthen.endpoint import Reply
    from self_lengthen.family import load_family
    from self_lengthen.files import write_json
    from self_lengthen.runfolder import INSTRUCTIONS, RunFolder
    from self_lengthen.steps import common, self_instruct

    family = load_family(FAMILY)
    count = iter(range(10 * size))

    class DrySource:
        async def chat(self, model, user, sampling, *, seed, opened_with="") -> Reply:
            await asyncio.sleep(0)
            text = (
                f"请写一篇关于第{next(count)}号灯塔的长篇报告，分十二章。"
                if opened_with
                else "是。"
            )
            return Reply(text, "stop", 300, 30)

        async def load(self) -> None:
            """It does not tell."""

        async def __aenter__(self) -> "DrySource":
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    common.Endpoint = lambda *_: DrySource()
    fanout.Progress = Quiet
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "family": FAMILY,
            "base_model": "none",
            "seeds": str(family.seeds),
            "seed": 1,
            "instruct_count": size,
            "max_tokens": 512,
            "finish_ratio": 1.0,
        }
        write_json(Path(folder) / "run.json", {"options": options})
        run = RunFolder(Path(folder))
        started = time.monotonic()
        step = common.StepRun(INSTRUCTIONS, family, run, 1, "http://dry/v1", CONCURRENCY)
        self_instruct.make(step)
        kept = json.loads((run.step(1, INSTRUCTIONS).path / "manifest.json").read_text())["rows"]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kept": kept, "seconds": time.monotonic() - started, "peak_mib": peak_mib}


class Quiet:
    """No progress: a dry run would print thousands of lines."""

    def __init__(self, *_: object) -> None:
        pass

    def advance(self, kept: bool) -> None:
        pass

    def close(self) -> None:
        pass


def in_its_own_process(size: int) -> dict[str, float]:
    command = [sys.executable, __file__, f"--sizes={size}", "--here"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--here", action="store_true", help="one size, in this process, as JSON")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    if args.here:
        print(json.dumps(measure(sizes[0])))
        return
    print("| instructions | kept | peak memory, MiB | seconds |\n|---:|---:|---:|---:|")
    for size in sizes:
        found = in_its_own_process(size)
        row = (size, found["kept"], found["peak_mib"], found["seconds"])
        print("| {:,} | {:,} | {:.0f} | {:.0f} |".format(*row), flush=True)


if __name__ == "__main__":
    main()
