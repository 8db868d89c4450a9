"""What an accepted word of steps 1 and 2 costs: with and without early stop, 32 in flight and ours.

    python bench/pipeline.py [--instructions=16] [--max_tokens=1024] [--virtual]

The real steps on the real server with the bundled model. The workload: for a third of the requests
(by their seed) the end token, the stop strings and the repetition penalty are taken away, so that
the text goes on to --max_tokens and repeats itself, as a degenerate text of a real model does.
With --virtual no server runs: an engine of known speed in virtual time, see bench/virtual.py.
Prints Markdown; works in a temporary folder.
"""

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stack import MODEL, AskingEndpoint, served
from virtual import VirtualEngine, run_virtually

from self_lengthen.cli import Parser, at_least
from self_lengthen.errors import main_exit
from self_lengthen.family import load_family
from self_lengthen.files import read_json, read_rows, write_json
from self_lengthen.runfolder import EXTENDED, INITIAL, INSTRUCTIONS, RunFolder
from self_lengthen.steps import common, extend_responses, initial_responses

FAMILY = load_family(MODEL.name)
DEGENERATE = 3  # one request of so many
# (early stop, in flight; 0: by load): the released way, ours, and each change alone
CONFIGURATIONS = (("no", 32), ("yes", 0), ("yes", 32), ("no", 0))
STEPS = (initial_responses, extend_responses)


def degenerate(request: dict[str, Any]) -> dict[str, Any]:
    if request["seed"] % DEGENERATE:
        return request
    return {**request, "ignore_eos": True, "stop": [], "repetition_penalty": 1.0}


def make_run(folder: Path, instructions: int, max_tokens: int, early_stop: str) -> RunFolder:
    """A run whose step 0 is finished: the family's seeds as instructions."""
    options = {"family": FAMILY.name, "base_model": str(MODEL), "seed": 1, "finish_ratio": 1.0}
    options |= {"max_tokens": max_tokens, "early_stop": early_stop}
    write_json(folder / "run.json", {"options": options})
    run = RunFolder(folder)
    seeds = [row["prompt"] for row in read_rows(FAMILY.seeds)]
    rows = [
        {"id": f"i1-q{number:06d}", "instruction": seeds[number % len(seeds)]}
        for number in range(instructions)
    ]
    units = {"in": len(rows), "kept": len(rows), "dropped": {}, "failed": 0, "cut": 0}
    run.step(1, INSTRUCTIONS).finish(iter(rows), {"units": units})
    return run


def measure(run: RunFolder, base_url: str, concurrency: int) -> dict[str, Any]:
    started, engines = time.monotonic(), []
    if not base_url:
        common.Endpoint = lambda *_: engines.append(VirtualEngine()) or engines[-1]
    for module in STEPS:
        step = common.StepRun(module.STEP, FAMILY, run, 1, base_url or "virtual", concurrency)
        module.make(step)
    seconds = sum(e.seconds for e in engines) if engines else time.monotonic() - started
    summaries = [read_json(run.step(1, name).path / "summary.json") for name in (INITIAL, EXTENDED)]
    rows = list(read_rows(run.step(1, EXTENDED).data))
    tokens = sum(summary["tokens"]["completion"] for summary in summaries)
    words = sum(row["words"] for row in rows)
    attempts = [summary["attempts"] for summary in summaries]
    rejected = 1 - sum(a["accepted"] for a in attempts) / sum(a["total"] for a in attempts)
    idle = [summary["idle_share"] for summary in summaries]
    return {
        **{"words": words, "texts": len(rows), "tokens": tokens, "seconds": seconds},
        **{"rejected": rejected, "idle": idle},
    }


def row(early_stop: str, in_flight: int, got: dict[str, Any], first: dict[str, Any]) -> str:
    cost, rate = got["tokens"] / got["words"], got["words"] / got["seconds"]
    cost_0, rate_0 = first["tokens"] / first["words"], first["words"] / first["seconds"]
    idle = " and ".join("–" if share is None else f"{share:.0%}" for share in got["idle"])
    cells = [early_stop, str(in_flight or "by load"), str(got["texts"]), str(got["words"])]
    cells += [f"{got['rejected']:.0%}", f"{cost:.2f}", f"{cost / cost_0:.2f}"]
    return " | ".join([*cells, f"{rate:.1f}", f"{rate / rate_0:.2f}", idle])


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--instructions", type=at_least(1), default=16)
    parser.add_argument("--max_tokens", type=at_least(1), default=1024)
    parser.add_argument("--virtual", action="store_true", help="no server: an engine on paper")
    args = parser.parse_args()
    common.Endpoint = lambda url, *_: AskingEndpoint(url, degenerate)
    if args.virtual:
        common.uvloop = SimpleNamespace(run=run_virtually)
    print("| early stop | in flight | accepted texts | their words | attempts rejected", end="")
    print(" | tokens a word | ratio | words/s | ratio | engine idle, step 1 and 2 |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---|")
    server = nullcontext() if args.virtual else served({})
    with server as running, tempfile.TemporaryDirectory() as folder:
        base_url = running.base_url if running else ""
        first = None
        for early_stop, in_flight in CONFIGURATIONS:
            path = Path(folder) / f"{early_stop}-{in_flight}"
            run = make_run(path, args.instructions, args.max_tokens, early_stop)
            got = measure(run, base_url, in_flight)
            first = first or got
            print("|", row(early_stop, in_flight, got, first), "|", flush=True)


if __name__ == "__main__":
    main_exit("bench/pipeline.py", main)
