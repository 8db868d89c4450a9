"""The final fine-tune: (query with its demand of length -> response), into a plain model folder.

    bash run_sft.sh --base_model=DIR --data=FILE --output=DIR [--finetuning=full] [--mix_with=FILE]

LoRA or all weights, on one node or several (WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT); the loss
is averaged over all target tokens of the global batch. With --mix_with, general chat data are mixed
in; --anneal_epochs goes on from those weights with the clean set alone. Writes below --output:

    data/       sft.jsonl, anneal.jsonl, dataset_info.json
    train/      sft/, anneal/: adapter or weights, each with <stage>.yaml and <stage>.manifest.json
    logs/       one file a process
    model/      a model folder that vLLM and transformers load
    manifest.json, written last; the same command continues from what is finished
"""

import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from self_lengthen.agreement import agree
from self_lengthen.claim import is_proof
from self_lengthen.cli import Parser, at_least, positive
from self_lengthen.cluster import Cluster
from self_lengthen.devices import visible_gpus
from self_lengthen.errors import RunError, UserError, main_exit
from self_lengthen.family import family_names
from self_lengthen.files import Row, read_json, write_json
from self_lengthen.follow import Follower
from self_lengthen.model import local_base_model, read_base_model
from self_lengthen.node import ALONE, Node, read_node
from self_lengthen.options import add_training_options, choose_family, training_values
from self_lengthen.owned import Owned
from self_lengthen.run import OBEY_TIMEOUT_S, on_terminate
from self_lengthen.runfolder import StepFolder
from self_lengthen.training.config import gradient_accumulation
from self_lengthen.training.final import Plan
from self_lengthen.training.final_data import Sources, write_data
from self_lengthen.training.sharding import choose_sharding
from self_lengthen.training.together import take_part, train

FULL_LEARNING_RATE = 1e-5  # of all weights, where none is given; LongWriter's
MIX_RATIO = 20.0  # general conversations to one of ours; LongWriter's practice
MERGE_TIMEOUT_S = 6 * 3600.0
RENDEZVOUS_TIMEOUT_S = 600.0  # for all nodes to come
POLL_S = 0.5

log = logging.getLogger("run_sft.sh")


def parser() -> Parser:
    parser = Parser(prog="run_sft.sh", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--base_model", required=True, help="folder of a chat model, or its name on the hub")
    add("--data", type=Path, action="append", required=True, help="JSON (lines); repeatable")
    add("--output", type=Path, required=True, help="folder of the fine-tune")
    add("--family", choices=family_names(), help="default: by the model's config.json")
    add("--finetuning", choices=("lora", "full"), default="lora", help="default %(default)s")
    add("--mix_with", type=Path, action="append", default=[], help="general chat data; repeatable")
    add("--mix_ratio", type=positive, default=MIX_RATIO, help="of it to one of ours (%(default)g)")
    add("--anneal_epochs", type=at_least(0, float), default=0.0, help="on --data alone, after it")
    add("--seed", type=int, default=42, help="of every random choice (default %(default)s)")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    limit = 7 * 86400.0
    add("--training_timeout_s", type=at_least(1, float), default=limit, help="of one stage")
    add("--dry_run", action="store_true", help="print the command lines, start none")
    add_training_options(parser)
    return parser


def read_plan(argv: Sequence[str], node: Node = ALONE) -> tuple[Plan, bool]:
    """The plan, and whether only to print it. Raises UserError; nothing has been written then."""
    args = parser().parse_args(argv)
    model = read_base_model(args.base_model)
    given = {name: value for name, value in vars(args).items() if value is not None}
    if args.finetuning == "full":
        given.setdefault("learning_rate", FULL_LEARNING_RATE)
    output = args.output.resolve()
    if " " in str(output):
        raise UserError(f"--output={output}: LLaMA-Factory takes no path with a space in it")
    gpus, values = visible_gpus(), training_values(given)
    devices = max(1, len(gpus)) * node.size
    plan = Plan(
        base_model=model.path,
        family=choose_family(args.family, model),
        data=[path.resolve() for path in args.data],
        mix_with=[path.resolve() for path in args.mix_with],
        mix_ratio=args.mix_ratio,
        anneal_epochs=args.anneal_epochs,
        finetuning=args.finetuning,
        values=values,
        results=output,
        gpus=[gpu.id for gpu in gpus],
        sharding=choose_sharding(args.sharding, model, values, gpus, devices, args.finetuning),
        node=node,
        seed=args.seed,
        trust_remote_code=args.trust_remote_code,
        timeout_s=args.training_timeout_s,
    )
    gradient_accumulation(values, devices)
    return plan, args.dry_run


def lead(plan: Plan, cluster: Cluster | None = None) -> None:
    """All that rank 0 does: data, stages, merge, manifest."""
    cluster = cluster or Cluster(ALONE, 0)
    whole, data = StepFolder(plan.results), StepFolder(plan.results / "data")
    claim(plan, whole, data)
    if not whole.complete:
        if not data.complete:
            write_data(Sources(plan), data)
        stages(plan, cluster)
        merge(plan, cluster)
        losses = {job.role: read_json(job.manifest)["losses"][-1] for job in plan.jobs()}
        write_json(whole.path / "manifest.json", {"model": str(plan.model), "last_losses": losses})
    cluster.answers(cluster.order({"do": "end"}), "the end there", OBEY_TIMEOUT_S)


def stages(plan: Plan, cluster: Cluster) -> None:
    for job in plan.jobs():
        log.info("%s: training", job.role)
        train([job], plan.logs, side_by_side=False, timeout_s=plan.timeout_s, cluster=cluster)


def merge(plan: Plan, cluster: Cluster) -> None:
    """Raises RunError when it fails or does not end."""
    if plan.model.exists():
        return
    log.info("writing %s", plan.model)
    log_file = plan.logs / "merge.log"
    with Owned("merge", plan.merge_command(), log_file) as process:
        deadline = time.monotonic() + MERGE_TIMEOUT_S
        while (status := process.poll()) is None:
            cluster.check()
            if time.monotonic() > deadline:
                raise RunError(f"merge did not end in {MERGE_TIMEOUT_S:.0f} s; log: {log_file}")
            time.sleep(POLL_S)
    if status != 0:
        raise RunError(f"merge ended with status {status}; log: {log_file}\n{process.log_tail()}")


class SftFollower(Follower):
    """Any other rank: its part of each training that rank 0 orders, until the end."""

    def _train(self, order: Row) -> None:
        plan = self.plan
        take_part(order, plan.jobs(), plan.logs, plan.timeout_s, self.cluster)


def claim(plan: Plan, whole: StepFolder, data: StepFolder) -> None:
    """Refuse other options, and a folder of something else; look at all rows before the first."""
    started = (whole.path / "step.json").exists()
    found = whole.path.iterdir() if whole.path.exists() else ()
    if not started and not all(map(is_proof, found)):
        raise UserError(f"--output={whole.path}: holds other files; give an empty or new folder")
    if not started and not data.complete:
        Sources(plan)
    try:
        whole.claim(plan.options, "another --output")
    except OSError as error:
        raise UserError(f"--output={whole.path}: cannot be written ({error.strerror})") from error


def dry_run(plan: Plan, say: Callable[[str], None] = print) -> None:
    """The command lines of this node, in order."""
    for job in plan.jobs():
        say(str(job))
    if plan.node.leads:
        say(shlex.join(plan.merge_command()))


def main() -> None:
    node = read_node()
    plan, only_print = read_plan(sys.argv[1:], node)
    if only_print:
        dry_run(plan)
        return
    plan = replace(plan, base_model=local_base_model(plan.base_model))
    signal.signal(signal.SIGTERM, on_terminate)
    with Cluster(node, RENDEZVOUS_TIMEOUT_S) as cluster:
        agree(cluster, plan)
        if node.leads:
            lead(plan, cluster)
            print(plan.model)
        else:
            SftFollower(plan, cluster).go()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main_exit("run_sft.sh", main)
