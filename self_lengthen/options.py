"""The options of run.sh: one table, checked before anything is written.

`--demo` is a preset of ordinary options; every one of them may be given beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from self_lengthen.attempts import ATTEMPTS
from self_lengthen.cli import Parser, at_least, positive, share, warmup_share
from self_lengthen.devices import Gpu, default_tensor_parallel, visible_gpus, worker_groups
from self_lengthen.errors import UserError
from self_lengthen.extension import MICRO_ROUNDS
from self_lengthen.family import ModelFamily, family_names, infer_family, load_family
from self_lengthen.model import BaseModel, read_base_model, served_context
from self_lengthen.node import ALONE, Node
from self_lengthen.ports import choose_ports
from self_lengthen.seeds import read_seeds
from self_lengthen.serving.plan import LORA_RANKS
from self_lengthen.training.config import SHARDINGS, TrainingValues, gradient_accumulation
from self_lengthen.training.sharding import AUTO, choose_sharding

REPO_ROOT = Path(__file__).resolve().parent.parent
DEMO_FAMILY = "llama"  # most readers can judge English samples

# Small numbers for a model of 2M parameters on two cores.
DEMO = {
    "instruct_count": 22,
    "micro_rounds": 2,
    "attempts": 3,  # what was rejected so often is rarely accepted after all, and holds up the step
    "max_tokens": 768,
    "epochs": 4.0,
    "global_batch": 4,
    "device_batch": 4,
    "cutoff_len": 4096,
    "finish_ratio": 0.85,  # the last texts, with all their attempts, take as long as all others
}
# The Chinese model has more to learn, and a token of it is two characters: a text that finds no end
# costs less when it is stopped earlier. Fewer instructions or a higher rate, and now and then its
# Generator finds no end at all.
DEMO_OF_FAMILY = {
    "llama": {"learning_rate": 4.3e-4, "epochs": 4.5},
    "qwen": {"learning_rate": 3.8e-4, "instruct_count": 30, "max_tokens": 448},
}

# Options that the data of a run do not depend on: they may change when a run is continued.
FREE_TO_CHANGE = {
    *("concurrency", "tensor_parallel", "gpus", "port", "controller_port", "worker_port"),
    *("early_stop", "server_timeout_s", "training_timeout_s", "side_by_side", "max_iter"),
    *("rendezvous_timeout_s", "sharding"),
    "device_batch",  # the global batch is what the weights depend on
}


@dataclass(frozen=True)
class Plan:
    """A checked run: its options as run.json has them, and what was found out about the machine."""

    options: dict[str, Any]
    results: Path
    family: ModelFamily
    gpus: list[Gpu]
    groups: list[list[str]]
    training: TrainingValues
    sharding: str | None
    fresh: bool
    dry_run: bool
    node: Node = ALONE
    logs: Path | None = None  # of servers; None: with the logs of their iteration

    @property
    def side_by_side(self) -> bool:
        """Train both roles at once: always on the CPU, on GPUs when asked for and there are two."""
        return _side_by_side(self.options["side_by_side"], len(self.gpus))


def _side_by_side(wish: str, gpus: int) -> bool:
    if wish == "auto":
        return not gpus
    return wish == "yes" and gpus != 1


def parser() -> Parser:
    parser = Parser(
        prog="run.sh",
        description="Self-Lengthen: macro-iterations of answering, extending and fine-tuning.",
        epilog="The same command continues an interrupted run. See README.md.",
    )
    add = parser.add_argument
    add(
        "--demo", action="store_true", help="the bundled tiny model on the CPU: a preset of options"
    )
    add("--base_model", help="folder of a chat model, or its name on the hub")
    add("--family", choices=family_names(), help="default: by the model's config.json")
    add("--instruct_count", type=at_least(1), help="new instructions an iteration (default 1000)")
    add("--max_iter", type=at_least(1), help="macro-iterations (default 3)")
    add("--results", type=Path, help="folder of the run (default results/<model>)")
    add("--seeds", type=Path, help="seed instructions (default seeds/<family>.jsonl)")
    add("--seed", type=int, default=42, help="of every random choice (default %(default)s)")
    add("--max_tokens", type=at_least(1), help="of a reply (default 16384)")
    add("--micro_rounds", type=at_least(1), help=f"of an extension (default {MICRO_ROUNDS})")
    add("--attempts", type=at_least(1), help=f"at a text, until one is kept (default {ATTEMPTS})")
    add("--finish_ratio", type=share, help="end a step at this share of its units (default 1)")
    add(
        "--early_stop",
        choices=("yes", "no"),
        default="yes",
        help="stop a text where it repeats itself; the same texts are accepted (default yes)",
    )
    add("--concurrency", type=at_least(0), default=0, help="units in flight; 0: by load")
    serving = parser.add_argument_group("serving")
    add = serving.add_argument
    add("--tensor_parallel", type=at_least(0), default=0, help="GPUs a worker; 0: by memory")
    add("--max_model_len", type=at_least(0), default=0, help="tokens; 0: the model's, up to 32768")
    add("--port", type=at_least(0), default=0, help="of the API server; 0: a free one")
    add("--controller_port", type=at_least(0), default=0, help="0: a free one")
    add("--worker_port", type=at_least(0), default=0, help="of the first worker; 0: free ones")
    add("--server_timeout_s", type=at_least(1, float), default=1800.0, help="until it is ready")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add_training_options(parser)
    add = parser.add_argument_group("running the training").add_argument
    add(
        "--training_timeout_s", type=at_least(1, float), default=2 * 86400.0, help="of one training"
    )
    add(
        "--side_by_side",
        choices=("auto", "yes", "no"),
        default="auto",
        help="train both roles at once, each on half of the devices; auto: on the CPU",
    )
    add = parser.add_argument
    add(
        "--rendezvous_timeout_s",
        type=at_least(1, float),
        default=600.0,
        help="for all nodes to come (docs/cluster.md; default %(default)g)",
    )
    add("--fresh", action="store_true", help="set an old run of this folder aside and start over")
    add("--dry_run", action="store_true", help="print what would run, with the command lines")
    return parser


def add_training_options(parser: Parser) -> None:
    """An option for each of TrainingValues, and one for where the weights lie."""
    defaults = TrainingValues()
    add = parser.add_argument_group("training").add_argument
    add("--learning_rate", type=positive, help=f"default {defaults.learning_rate}")
    add("--epochs", type=positive, help=f"default {defaults.epochs}")
    add("--warmup_ratio", type=warmup_share, help=f"default {defaults.warmup_ratio}")
    add("--lora_rank", type=at_least(1), help=f"default {defaults.lora_rank}")
    add("--lora_alpha", type=at_least(1), help=f"default {defaults.lora_alpha}")
    add("--cutoff_len", type=at_least(1), help=f"tokens of a text (default {defaults.cutoff_len})")
    add("--global_batch", type=at_least(1), help=f"texts a step (default {defaults.global_batch})")
    add(
        "--device_batch",
        type=at_least(1),
        help=f"of them at once (default {defaults.device_batch})",
    )
    add(
        "--sharding",
        choices=(AUTO, *SHARDINGS),
        default=AUTO,
        help="of the weights over the GPUs; auto: the fastest that fits their memory",
    )


def read_options(argv: Sequence[str], node: Node = ALONE) -> Plan:
    """Raises UserError for whatever is wrong; nothing has been written then."""
    args = parser().parse_args(argv)
    given = {name: value for name, value in vars(args).items() if value is not None}
    if args.demo:
        given = {**demo_preset(args.family or DEMO_FAMILY), **given}
    if "base_model" not in given:
        raise UserError("--base_model is missing: a folder, a name on the hub, or use --demo")
    model = read_base_model(given["base_model"])
    family = choose_family(given.get("family"), model)
    gpus = visible_gpus()[: 1 if args.demo else None]
    seeds = Path(given.get("seeds", family.seeds)).resolve()
    read_seeds(seeds)
    tensor_parallel = given["tensor_parallel"] or default_tensor_parallel(
        gpus, model.weight_bytes, model.attention_heads
    )
    groups = worker_groups(gpus, tensor_parallel, model.attention_heads)
    ports = (given[option] for option in ("controller_port", "port", "worker_port"))
    choose_ports(node.address, *ports, workers=len(groups))
    values = training_values(given)
    devices = _training_devices(len(gpus), args.side_by_side, node)
    if args.device_batch is None:
        most = max(1, values.global_batch // devices)
        values = replace(values, device_batch=min(values.device_batch, most))
    options = {
        **_plain(given),
        "base_model": model.path,
        "family": family.name,
        "seeds": str(seeds),
        "instruct_count": given.get("instruct_count", 1000),
        "max_tokens": given.get("max_tokens", 16384),
        "max_iter": given.get("max_iter", 3),
        "finish_ratio": given.get("finish_ratio", 1.0),
        "micro_rounds": given.get("micro_rounds", MICRO_ROUNDS),
        "attempts": given.get("attempts", ATTEMPTS),
        "tensor_parallel": tensor_parallel,
        "max_model_len": served_context(given["max_model_len"], model),
        **{field.name: getattr(values, field.name) for field in fields(values)},
    }
    results = Path(given.get("results", _default_results(args.demo, family, model))).resolve()
    if " " in str(results):
        raise UserError(f"--results={results}: LLaMA-Factory takes no path with a space in it")
    gradient_accumulation(values, devices)
    sharding = choose_sharding(args.sharding, model, values, gpus, devices)
    return Plan(
        *(options, results, family, gpus, groups, values, sharding),
        fresh=args.fresh,
        dry_run=args.dry_run,
        node=node,
    )


def choose_family(name: str | None, model: BaseModel) -> ModelFamily:
    """The family of that name, else the one that the model infers. Raises UserError if none."""
    if name is not None:
        return load_family(name)
    family = infer_family(model.model_type)
    if family is None:
        raise UserError(
            f"{model.path}: no family lists model_type {model.model_type!r}; give --family="
            f"{' or '.join(family_names())}, or add a family (README.md)"
        )
    return family


def training_values(given: dict[str, Any]) -> TrainingValues:
    """The given ones, else the defaults. Raises UserError for a rank that cannot be served."""
    names = [field.name for field in fields(TrainingValues)]
    values = TrainingValues(**{name: given[name] for name in names if name in given})
    if values.lora_rank > LORA_RANKS[-1]:
        raise UserError(f"--lora_rank={values.lora_rank}: vLLM serves up to {LORA_RANKS[-1]}")
    return values


def _training_devices(gpus: int, side_by_side: str, node: Node) -> int:
    """Devices, over all nodes, that train one role."""
    share = gpus // 2 if _side_by_side(side_by_side, gpus) else gpus
    return max(1, share) * node.size


def demo_preset(family: str) -> dict[str, Any]:
    """Options by name."""
    model = {"base_model": str(REPO_ROOT / "demo" / "models" / family)}
    return {**DEMO, **model, **DEMO_OF_FAMILY.get(family, {})}  # of a further family there is none


def _default_results(demo: bool, family: ModelFamily, model: BaseModel) -> Path:
    name = f"demo-{family.name}" if demo else model.path.rstrip("/").rpartition("/")[2]
    return Path("results") / name


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    left_out = {"demo", "fresh", "dry_run", "results"}
    return {name: value for name, value in given.items() if name not in left_out}
