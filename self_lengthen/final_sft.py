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
from dataclasses import asdict, replace
from pathlib import Path

from self_lengthen.cli import Parser, at_least, positive
from self_lengthen.devices import visible_gpus
from self_lengthen.errors import RunError, UserError, main_exit
from self_lengthen.family import family_names
from self_lengthen.files import Row, read_json, write_json
from self_lengthen.model import local_base_model, read_base_model
from self_lengthen.options import add_training_options, choose_family, training_values
from self_lengthen.owned import Owned
from self_lengthen.run import on_terminate
from self_lengthen.runfolder import StepFolder
from self_lengthen.training.config import gradient_accumulation
from self_lengthen.training.final import Plan, read_nodes
from self_lengthen.training.final_data import Sources, write_data
from self_lengthen.training.launch import process_env, train

FULL_LEARNING_RATE = 1e-5  # of all weights, where none is given; LongWriter's
MIX_RATIO = 20.0  # general conversations to one of ours; LongWriter's practice
MERGE_TIMEOUT_S = 6 * 3600.0
SHARED_DISK_S = 1800.0  # until node 0 has written the data
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


def read_plan(argv: Sequence[str]) -> tuple[Plan, bool]:
    """The plan, and whether only to print it. Raises UserError; nothing has been written then."""
    args = parser().parse_args(argv)
    model = read_base_model(args.base_model)
    given = {name: value for name, value in vars(args).items() if value is not None}
    if args.finetuning == "full":
        given.setdefault("learning_rate", FULL_LEARNING_RATE)
    output = args.output.resolve()
    if " " in str(output):
        raise UserError(f"--output={output}: LLaMA-Factory takes no path with a space in it")
    plan = Plan(
        base_model=model.path,
        family=choose_family(args.family, model),
        data=[path.resolve() for path in args.data],
        mix_with=[path.resolve() for path in args.mix_with],
        mix_ratio=args.mix_ratio,
        anneal_epochs=args.anneal_epochs,
        finetuning=args.finetuning,
        values=training_values(given),
        output=output,
        gpus=[gpu.id for gpu in visible_gpus()],
        nodes=read_nodes(),
        seed=args.seed,
        trust_remote_code=args.trust_remote_code,
        timeout_s=args.training_timeout_s,
    )
    gradient_accumulation(plan.values, max(1, len(plan.gpus)) * plan.nodes.size)
    return plan, args.dry_run


def options_of(plan: Plan) -> Row:
    """What the weights depend on."""
    return {
        "base_model": plan.base_model,
        "family": plan.family.name,
        "data": [str(path) for path in plan.data],
        "mix_with": [str(path) for path in plan.mix_with],
        "mix_ratio": plan.mix_ratio,
        "anneal_epochs": plan.anneal_epochs,
        "finetuning": plan.finetuning,
        "seed": plan.seed,
        **asdict(plan.values),
    }


def lead(plan: Plan) -> None:
    """All that node 0 does: data, stages, merge, manifest."""
    whole, data = StepFolder(plan.output), StepFolder(plan.output / "data")
    claim(plan, whole, data)
    if whole.complete:
        return
    if not data.complete:
        write_data(Sources(plan), data)
    jobs, logs = plan.jobs(), plan.output / "logs"
    for job in jobs:
        log.info("%s: training", job.role)
        train([job], logs, side_by_side=False, timeout_s=plan.timeout_s)
    if not plan.model.exists():
        log.info("writing %s", plan.model)
        run_to_end("merge", plan.merge_command(), logs / "merge.log", {}, MERGE_TIMEOUT_S)
    losses = {job.role: read_json(job.manifest)["losses"][-1] for job in jobs}
    write_json(whole.path / "manifest.json", {"model": str(plan.model), "last_losses": losses})


def claim(plan: Plan, whole: StepFolder, data: StepFolder) -> None:
    """Refuse other options, and a folder of something else; look at all rows before the first."""
    started = (whole.path / "step.json").exists()
    if not started and whole.path.exists() and any(whole.path.iterdir()):
        raise UserError(f"--output={whole.path}: holds other files; give an empty or new folder")
    if not started and not data.complete:
        Sources(plan)
    try:
        whole.claim(options_of(plan), "another --output")
    except OSError as error:
        raise UserError(f"--output={whole.path}: cannot be written ({error.strerror})") from error


def follow(plan: Plan) -> None:
    """All that another node does: its part of each stage."""
    for job in plan.jobs():
        if job.manifest.exists():
            continue
        wait_for(job.config_file, SHARED_DISK_S)
        log_file = plan.output / "logs" / f"{job.role}.node{plan.nodes.rank}.log"
        run_to_end(job.role, job.command, log_file, process_env(job), plan.timeout_s)


def run_to_end(name: str, command: list[str], log_file: Path, env: dict, timeout_s: float) -> None:
    """Raises RunError when the command fails or does not end."""
    with Owned(name, command, log_file, env) as process:
        deadline = time.monotonic() + timeout_s
        while (status := process.poll()) is None:
            if time.monotonic() > deadline:
                raise RunError(f"{name} did not end within {timeout_s:.0f} s; log: {log_file}")
            time.sleep(POLL_S)
    if status != 0:
        raise RunError(f"{name} ended with status {status}; log: {log_file}\n{process.log_tail()}")


def wait_for(path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise RunError(f"node 0 did not write {path} within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def dry_run(plan: Plan, say: Callable[[str], None] = print) -> None:
    """The command lines of this node, in order."""
    for job in plan.jobs():
        say(str(job))
    if plan.nodes.rank == 0:
        say(shlex.join(plan.merge_command()))


def main() -> None:
    plan, only_print = read_plan(sys.argv[1:])
    if only_print:
        dry_run(plan)
        return
    plan = replace(plan, base_model=local_base_model(plan.base_model))
    signal.signal(signal.SIGTERM, on_terminate)
    if plan.nodes.rank:
        follow(plan)
        return
    lead(plan)
    print(plan.model)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main_exit("run_sft.sh", main)
