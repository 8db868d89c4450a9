"""What the steps share: command line, folder, the way from a fan-out to a finished step.

    python <family>/step1_gen_initial_responses.py --results=DIR --iteration=N --base_url=URL
    python <family>/step1_gen_initial_responses.py --results=DIR --round=K --base_url=URL

The options of the method (instruct_count, seed, sampling ...) come from the run's run.json.
"""

import random
import statistics
import sys
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import uvloop

from self_lengthen.cli import Parser, at_least
from self_lengthen.endpoint import NO_KEY, Endpoint, Sampling
from self_lengthen.errors import UserError, main_exit
from self_lengthen.family import ModelFamily
from self_lengthen.fanout import Counts, FanOut, Outcome, Tally, summed
from self_lengthen.files import Row
from self_lengthen.filters import Reason, drop_short
from self_lengthen.runfolder import KeptRecords, RunFolder, StepFolder
from self_lengthen.serving.key import read_key


@dataclass(frozen=True)
class StepRun:
    """One step of one iteration of one run, or of one round of collection after the last one."""

    name: str  # its folder
    family: ModelFamily
    run: RunFolder
    iteration: int
    base_url: str
    concurrency: int
    api_key: str = ""
    round: int = 0  # of collection; 0: a step of the iteration itself

    @property
    def folder(self) -> StepFolder:
        return self._step(self.name)

    @cached_property
    def options(self) -> dict[str, Any]:
        own = self.run.round(self.round).options if self.round else {}
        return {**self.run.options, **own}

    @property
    def label(self) -> str:
        """Opens the ids of its rows: "i3" in an iteration, "c2" in a round of collection."""
        return f"c{self.round}" if self.round else f"i{self.iteration}"

    @property
    def place(self) -> str:
        """For a person: "iteration 3", "round 2"."""
        return f"round {self.round}" if self.round else f"iteration {self.iteration}"

    def input(self, name: str) -> StepFolder:
        """The finished step `name` of this iteration or round."""
        return self._step(name).require()

    def earlier(self, name: str) -> Iterator[StepFolder]:
        """The finished steps `name` of all iterations and rounds before this one."""
        for iteration in range(1, self.iteration):
            yield self.run.step(iteration, name).require()
        for number in range(1, self.round):
            yield self.run.round(number).step(name).require()

    def _step(self, name: str) -> StepFolder:
        if self.round:
            return self.run.round(self.round).step(name)
        return self.run.step(self.iteration, name)

    def rng(self, *purpose: object) -> random.Random:
        """Luck of this step for one purpose, independent of any order."""
        place = self.label if self.round else self.iteration
        return random.Random("/".join(map(str, (self.seed, place, self.name, *purpose))))

    @property
    def seed(self) -> int:
        return self.options["seed"]

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_tokens=self.options["max_tokens"])

    @property
    def watched_sampling(self) -> Sampling:
        """Of texts that the response check reads whole: their first repetition may end them."""
        rules = self.family.ngram_rules if self.options.get("early_stop", "yes") == "yes" else ()
        return replace(self.sampling, stop_repeat=rules)

    def claim(self, **more: Any) -> None:
        self.folder.claim(
            {
                "family": self.family.name,
                "base_model": self.options["base_model"],
                "seed": self.seed,
                "max_tokens": self.options["max_tokens"],
                **more,
            }
        )


def run_step(name: str, family: ModelFamily, make: Callable[[StepRun], None]) -> None:
    """Command line of a step script: parse, skip what is complete, run, leave with a status."""
    main_exit(Path(sys.argv[0]).name, lambda: _main(name, family, make))


def _main(name: str, family: ModelFamily, make: Callable[[StepRun], None]) -> None:
    parser = Parser(description=make.__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of the run")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--iteration", type=at_least(1), help="macro-iteration, from 1")
    place.add_argument("--round", type=at_least(1), default=0, help="of collection, from 1")
    parser.add_argument(
        "--base_url", default="", help="of the server, ends in /v1; or several: A,B"
    )
    parser.add_argument("--api_key_file", default="", help="holds the key that the server asks for")
    parser.add_argument(
        "--concurrency", type=at_least(0), default=0, help="units in flight; 0: by load"
    )
    args = parser.parse_args()
    run = RunFolder(args.results)
    if run.options["family"] != family.name:
        raise UserError(
            f"{args.results} is a run of the family {run.options['family']}: use its script"
        )
    key = read_key(args.api_key_file)
    iteration = args.iteration or run.round(args.round).options["iteration"]
    step = StepRun(
        *(name, family, run, iteration, args.base_url, args.concurrency, key, args.round)
    )
    if not step.folder.complete:
        make(step)


def fan_out(
    step: StepRun,
    total: int,
    work: Callable[[Tally, int], Awaitable[Outcome]],
    order: Iterable[int] | None = None,
) -> tuple[Counts, float]:
    """Do all units of a step against the server, in `order`.

    Returns their counts, and the seconds of this session.
    """
    if not step.base_url:
        raise UserError(f"the step {step.name} asks a server: give --base_url=http://HOST:PORT/v1")
    label, ratio = f"{step.place} {step.name}", step.options["finish_ratio"]
    endpoint = Endpoint(step.base_url, step.api_key or NO_KEY)
    ask = Asking(label, step.folder, endpoint, step.concurrency, ratio)
    return ask_all(ask, total, work, order)


@dataclass(frozen=True)
class Asking:
    """Whom to ask, how many at once, and where what is finished is noted."""

    label: str
    folder: StepFolder
    endpoint: Endpoint
    concurrency: int
    finish_ratio: float = 1.0
    tells_load: bool = True  # False: a foreign server, which is not asked for its load


def ask_all(
    ask: Asking,
    total: int,
    work: Callable[[Tally, int], Awaitable[Outcome]],
    order: Iterable[int] | None = None,
) -> tuple[Counts, float]:
    """Do all units that the folder's journal does not hold, in `order`; counts and seconds."""
    started = time.monotonic()

    async def main() -> Counts:
        journal = ask.folder.open_journal()
        engine = FanOut(
            ask.label,
            total,
            journal,
            concurrency=ask.concurrency,
            finish_ratio=ask.finish_ratio,
            order=order,
        )
        try:
            async with ask.endpoint as endpoint:
                tell_load = endpoint.load if ask.tells_load else None

                def begin(unit: int) -> Awaitable[Outcome]:
                    return work(Tally(endpoint, places=engine), unit)

                return await engine.run(begin, tell_load)
        finally:
            journal.close()

    return uvloop.run(main()), time.monotonic() - started


def finish_fan_out(
    step: StepRun, counts: Counts, seconds: float, *, drop_shortest: bool = False
) -> None:
    """Rows of the kept units in order, and the summary; with drop_short over them where asked."""
    journal = step.folder.open_journal()
    sums = summed(journal.records())
    journal.close()
    kept = KeptRecords(journal.path)
    keep = [True] * len(kept)
    if drop_shortest:
        keep = keep_longer(kept.rows(), step.rng("drop_short"))
    dropped = Counter(sums.pop("dropped"))
    dropped[Reason.DROP_SHORT] = keep.count(False)
    units = {
        "in": counts.total,
        "kept": sum(keep),
        "dropped": dict(+dropped),
        "failed": counts.failed,
        "cut": counts.cut,
    }
    words = word_statistics(row["words"] for row in kept.rows())
    rows = compress(kept.rows(), keep)
    sums["idle_share"] = counts.idle_share
    step.folder.finish(rows, summary(step, units, seconds, words=words, **sums))


def keep_longer(rows: Iterator[Row], rng: random.Random) -> list[bool]:
    """Which rows drop_short keeps, by the length of their response in characters."""
    return drop_short(array("q", (len(row["response"]) for row in rows)), rng)


def word_statistics(words: Iterator[int] | Sequence[int]) -> Row:
    """Count, mean, quartiles and longest of texts, in words."""
    counts = array("q", words)
    if not counts:
        return {"count": 0}
    quartiles = (
        statistics.quantiles(counts, n=4, method="inclusive") if len(counts) > 1 else counts * 3
    )
    q1, median, q3 = quartiles
    mean = round(statistics.fmean(counts), 1)
    return {
        "count": len(counts),
        "mean": mean,
        "q1": q1,
        "median": median,
        "q3": q3,
        "max": max(counts),
    }


def summary(step: StepRun, units: Row, seconds: float, **more: Any) -> Row:
    return {
        "step": step.name,
        "iteration": step.iteration,
        "units": units,
        "seconds": round(seconds, 2),
        **more,
    }
