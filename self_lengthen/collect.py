"""More data from the last Generator: steps 0 and 1 in rounds, until enough responses are kept.

    bash run_collect_data.sh --results=results/<run> --total_count=20000

Serves the base model and the adapters of the last macro-iteration. Reads run.json, the seeds and
iter_N/lora; writes results/<run>/collect_K/ for round K, which is resumed like an iteration. Rounds
that are complete count and stay, also those of an earlier call. On several nodes the same command
runs on each, as run.sh does.
"""

import argparse
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from self_lengthen.agreement import agree
from self_lengthen.claim import lock_run
from self_lengthen.cli import Parser, at_least
from self_lengthen.cluster import Cluster
from self_lengthen.devices import visible_gpus, worker_groups
from self_lengthen.errors import RunError, UserError, main_exit
from self_lengthen.family import load_family
from self_lengthen.files import read_json
from self_lengthen.follow import Follower
from self_lengthen.model import local_base_model, read_base_model
from self_lengthen.node import ALONE, Node, read_node
from self_lengthen.options import Plan
from self_lengthen.owned import Owned
from self_lengthen.run import STEPS, Pipeline, Step, on_terminate
from self_lengthen.runfolder import GENERATOR_SFT, INITIAL, Round, RunFolder, newest_run
from self_lengthen.serving.share import server_command
from self_lengthen.training.config import TrainingValues

RESULTS = Path("results")
ROUND_STEPS = STEPS[:2]  # instructions, initial responses

log = logging.getLogger("run_collect_data.sh")


class Collection(Pipeline):
    """Rounds after the last macro-iteration with a Generator; served as run.sh serves."""

    def __init__(self, wanted: "Wanted", cluster: Cluster | None = None) -> None:
        super().__init__(wanted.plan, cluster)
        self.wanted, self.iteration = wanted, wanted.iteration
        self.round = unfinished_round(self.run)

    def _work(self) -> None:
        """Raises RunError when a step fails or a round keeps nothing."""
        if self.enough():
            return
        with self._serving(self.iteration) as (server, base_urls):
            while not self.enough():
                self._collect(server, base_urls)
                self.round = unfinished_round(self.run)

    def enough(self) -> bool:
        return self.count() >= self.wanted.total_count

    def count(self) -> int:
        """Responses of all finished rounds."""
        finished = (self.run.round(number).step(INITIAL) for number in self.run.rounds())
        return sum(read_json(s.path / "manifest.json")["rows"] for s in finished if s.complete)

    def _collect(self, server: Owned, base_url: str) -> None:
        """Finish the round that is not finished."""
        self.round.begin(self.iteration, self.wanted.instruct_count)
        before = self.count()
        for step in ROUND_STEPS:
            if not self.round.step(step.name).complete:
                self._step(self.iteration, step, base_url, server)
        count = self.count()
        total = self.wanted.total_count
        log.info("round %d: %d of %d responses", self.round.number, count, total)
        if count == before:
            raise RunError(
                f"{self.round.path}: kept no response; see the summary.json of its steps for the "
                "reasons"
            )

    def step_command(self, iteration: int, step: Step, base_url: str) -> list[str]:
        command = super().step_command(iteration, step, base_url)
        place = command.index(f"--iteration={iteration}")
        command[place] = f"--round={self.round.number}"
        return command

    @contextmanager
    def _timed(self, iteration: int, phase: str) -> Iterator[None]:
        """Said, not noted: phases.jsonl is about the macro-iterations."""
        started = time.monotonic()
        yield
        log.info("round %d: %s took %.0f s", self.round.number, phase, time.monotonic() - started)

    def dry_run(self, say: Callable[[str], None] = print) -> None:
        """The command lines of the server and of the next round."""
        say(shlex.join(server_command(self.plan, self.iteration)))
        total = self.wanted.total_count
        say(f"# round {self.round.number}, and more until {total} responses are kept")
        for step in ROUND_STEPS:
            say(shlex.join(self.step_command(self.iteration, step, "http://HOST:PORT/v1")))


@dataclass(frozen=True)
class Wanted:
    """What is to be collected, checked."""

    plan: Plan
    iteration: int  # the one whose Generator answers
    instruct_count: int
    total_count: int


def unfinished_round(run: RunFolder) -> Round:
    """The first one whose responses are not there."""
    number = 1
    while run.round(number).step(INITIAL).complete:
        number += 1
    return run.round(number)


def parser() -> Parser:
    parser = Parser(prog="run_collect_data.sh", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--results", type=Path, help="folder of the run (default: of --base_model, or the newest)")
    add("--base_model", help="the run's, to find it or to make sure")
    add("--total_count", type=at_least(1), required=True, help="responses to collect")
    add("--instruct_count", type=at_least(1), help="instructions a round (default: the run's)")
    add("--max_iter", type=at_least(1), help="the iteration to serve (default: the last trained)")
    add("--concurrency", type=at_least(1), help="units in flight (default: the run's)")
    add("--tensor_parallel", type=at_least(1), help="GPUs a worker (default: the run's)")
    add("--dry_run", action="store_true", help="print what would run, with the command lines")
    return parser


def read_wanted(argv: Sequence[str], node: Node = ALONE) -> Wanted:
    """What the options ask for. Raises UserError; nothing has been written then."""
    args = parser().parse_args(argv)
    run = find_run(args.results, args.base_model)
    iteration = last_trained(run, args.max_iter) + 1
    instruct_count = args.instruct_count or run.options["instruct_count"]
    return Wanted(read_plan(run, args, node), iteration, instruct_count, args.total_count)


def find_run(results: Path | None, base_model: str | None) -> RunFolder:
    if results is None and base_model is None:
        run = newest_run(RESULTS)
        log.info("the newest run: %s", run.path)
        return run
    run = RunFolder((results or RESULTS / Path(base_model).name).resolve())
    of_run = run.options["base_model"]
    if base_model is not None and local_base_model(base_model) != of_run:
        raise UserError(f"--base_model={base_model}: {run.path} is a run of {of_run}")
    return run


def last_trained(run: RunFolder, wanted: int | None) -> int:
    """The last iteration whose Generator is trained, or `wanted` if that is."""
    trained = [
        number
        for number in run.iterations()
        if run.adapter(number, f"{GENERATOR_SFT}.manifest.json").exists()
    ]
    if not trained:
        raise UserError(f"{run.path}: no Generator is trained yet; finish run.sh first")
    if wanted is not None and wanted not in trained:
        raise UserError(f"--max_iter={wanted}: {run.path} has trained iterations {trained}")
    return wanted or trained[-1]


def read_plan(run: RunFolder, args: argparse.Namespace, node: Node) -> Plan:
    """The run's own options, on the GPUs of this machine."""
    options = dict(run.options)
    for name in ("concurrency", "tensor_parallel"):
        options[name] = getattr(args, name) or options[name]
    gpus = visible_gpus()
    heads = read_base_model(options["base_model"]).attention_heads
    return Plan(
        options=options,
        results=run.path,
        family=load_family(options["family"]),
        gpus=gpus,
        groups=worker_groups(gpus, options["tensor_parallel"], heads),
        training=TrainingValues(),
        sharding=None,  # nothing is trained
        fresh=False,
        dry_run=args.dry_run,
        node=node,
        logs=unfinished_round(run).logs,
    )


def main() -> None:
    node = read_node()
    wanted = read_wanted(sys.argv[1:], node)
    plan = wanted.plan
    if plan.dry_run:
        Collection(wanted).dry_run()
        return
    signal.signal(signal.SIGTERM, on_terminate)
    with Cluster(node, plan.options["rendezvous_timeout_s"]) as cluster:
        agree(cluster, plan)
        if not node.leads:
            Follower(plan, cluster).go()
            return
        with lock_run(plan.results / "run.json"):
            collection = Collection(wanted, cluster)
            collection.go()
    log.info("%d responses; now: python collect_data.py", collection.count())
    print(plan.results)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main_exit("run_collect_data.sh", main)
