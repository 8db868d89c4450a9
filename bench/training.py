"""LoRA fine-tuning on a GPU: seconds a text, tokens a second and peak memory of several ways.

    python bench/training.py [--tokens=16381,2045] [--ways=ours,released] [--steps=4] [--texts=2]

A model in the shape of Qwen2-7B with random weights, and our trainer with the configuration that a
run would write, on the first GPU; --shape=demo is the bundled model's, which a CPU can train. Steps
of --texts texts of so many tokens; the first step warms up and is left out. LLaMA-Factory's own way
has its mask of padding, which texts need whose length is no multiple of 8.
Prints Markdown, talk to stderr; works in a temporary folder of --folder, 16 GB.
"""

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from self_lengthen.cli import Parser, at_least
from self_lengthen.errors import RunError, UserError, main_exit
from self_lengthen.family import REPO_ROOT, load_family
from self_lengthen.files import Row, read_rows, write_json
from self_lengthen.owned import Owned
from self_lengthen.ports import free_ports
from self_lengthen.training.config import (
    DEALT_OUT,
    OFFLOADED,
    WHOLE,
    TrainingValues,
    sft_config,
    write_config,
)
from self_lengthen.training.launch import TrainingJob, device_env, process_env
from self_lengthen.training.trainer import TRAINER, torchrun

FAMILY = load_family("qwen")
BUNDLED = REPO_ROOT / "demo" / "models" / FAMILY.name
QWEN2_7B = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
    **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    **{"max_position_embeddings": 32768, "tie_word_embeddings": False},
    "layer_types": ["full_attention"] * 28,
}
ROLE = "gen_sft"
PACKED_TOKENS = 16384  # of a row that is made of several texts
TIMEOUT_S = 200.0  # of a row of the table
POLL_S = 0.02


@dataclass(frozen=True)
class Way:
    sharding: str = WHOLE
    fused_loss: bool = True
    masked: bool = False  # LLaMA-Factory's own trainer
    packed: bool = False


WAYS = {
    "released": Way(OFFLOADED, fused_loss=False, masked=True),
    "ours": Way(),
    "zero3": Way(DEALT_OUT, fused_loss=False, masked=True),
    "ours-masked": Way(masked=True),
    "ours-zero3": Way(DEALT_OUT),
    "ours-packed": Way(packed=True),
}


def make_model(folder: Path, shape: str) -> Path:
    """A folder with random weights and the bundled tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(BUNDLED)
    if shape != "demo":
        config.update(QWEN2_7B)
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(folder)
    return folder


def make_data(folder: Path, texts: int, longer_than: int) -> Path:
    """Texts that will be cut."""
    rows = [
        {"system": "", "prompt": "?", "response": " ".join(map(str, range(i, i + longer_than)))}
        for i in range(texts)
    ]
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"prompt": "prompt", "response": "response", "system": "system"}
    write_json(
        folder / "dataset_info.json", {ROLE: {"file_name": "rows.jsonl", "columns": columns}}
    )
    return folder


def job_of(way: Way, folder: Path, model: Path, tokens: int, args: Namespace) -> TrainingJob:
    """The job of a run, but that it ends after some steps and writes no checkpoints."""
    import torch

    gpu = torch.cuda.is_available()
    config = sft_config(
        ROLE,
        base_model=str(model),
        template=FAMILY.training_template,
        data=make_data(folder / "data", 2 * args.texts * PACKED_TOKENS // tokens, tokens),
        output=folder / "lora" / ROLE,
        previous_adapter=None,
        values=TrainingValues(cutoff_len=tokens, global_batch=args.texts),
        devices=1,
        sharding=way.sharding if gpu else None,
        seed=1,
    )
    if not way.fused_loss:
        config.pop("enable_liger_kernel", None)
    if way.packed:
        config |= {"packing": True, "cutoff_len": PACKED_TOKENS}
    config |= {"max_steps": args.steps, "save_strategy": "no", "plot_loss": False}
    env = {**device_env(["0"] if gpu else []), "FORCE_TORCHRUN": "1", "RECORD_VRAM": "1"}
    return TrainingJob(ROLE, config, folder / "lora" / f"{ROLE}.yaml", env)


def command(job: TrainingJob, env: dict[str, str], masked: bool) -> list[str]:
    if not masked:
        return job.command
    package = Path(importlib.util.find_spec("llamafactory").origin).parent
    launcher = torchrun(env, str(job.config_file))
    at = launcher.index(TRAINER)
    return [*launcher[: at - 1], str(package / "launcher.py"), *launcher[at + 1 :]]


def train(job: TrainingJob, masked: bool, log: Path) -> tuple[list[float], list[Row]]:
    """When each step was logged, and what. Raises RunError when it fails or does not end."""
    write_config(job.config, job.config_file)
    env = process_env(job, *free_ports("127.0.0.1", 1))
    logged, ends, started = job.output / "trainer_log.jsonl", [], time.monotonic()
    with Owned("training", command(job, env, masked), log, env) as process:
        while process.poll() is None:
            steps = logged.read_bytes().count(b"\n") if logged.exists() else 0
            ends += [time.monotonic()] * (steps - len(ends))
            if time.monotonic() > started + TIMEOUT_S:
                raise RunError(f"not done after {TIMEOUT_S:.0f} s:\n{process.log_tail()}")
            time.sleep(POLL_S)
        if process.poll() != 0:
            raise RunError(f"status {process.poll()}:\n{process.log_tail()}")
    rows = [row for row in read_rows(logged) if "loss" in row]
    return ends[: len(rows)], rows


def tokens_per_s(ends: list[float], step_tokens: int) -> float:
    """Of the median step but the first; `ends` of the steps, of so many tokens each."""
    steps = zip(ends, ends[1:], strict=False)
    return step_tokens / statistics.median(after - before for before, after in steps)


def cells(speed: float, first: float, tokens: int, rows: list[Row]) -> list[str]:
    memory = [str(rows[-1][f"vram_{kind}"]) for kind in ("allocated", "reserved")]
    losses = " ".join(f"{row['loss']:.4f}" for row in rows)
    return [f"{tokens / speed:.3f}", f"{speed:,.0f}", f"{speed / first:.2f}", *memory, losses]


def table_rows(made: Path, model: Path, tokens: int, args: Namespace) -> Iterator[list[str]]:
    first = None
    for name in args.ways.split(","):
        folder, way = made / f"{tokens}-{name}", WAYS[name]
        folder.mkdir()
        job = job_of(way, folder, model, tokens, args)
        try:
            ends, logged = train(job, way.masked, (args.log_dir or folder) / f"{tokens}-{name}.log")
        except RunError as error:  # out of memory, say; the other rows are worth having
            print(error, file=sys.stderr)
            yield [str(tokens), name, *["–"] * 6]
            continue
        speed = tokens_per_s(ends, args.texts * (PACKED_TOKENS if way.packed else tokens))
        first = first or speed
        yield [str(tokens), name, *cells(speed, first, tokens, logged)]


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=("qwen2-7b", "demo"), default="qwen2-7b")
    add("--tokens", default="16381", help="of a text; several, with commas between them")
    add("--ways", default=",".join(WAYS), help="of %(default)s")
    add("--steps", type=at_least(2), default=4)
    add("--texts", type=at_least(1), default=2, help="a step")
    add("--folder", type=Path, help="that has room for the model")
    add("--log_dir", type=Path, help="keep the trainers' logs here")
    args = parser.parse_args()
    for name in args.ways.split(","):
        if name not in WAYS:
            raise UserError(f"--ways={args.ways}: there is no {name}, but {', '.join(WAYS)}")
    print("| tokens | way | s a text | tokens/s | ratio | GiB allocated | reserved | losses |")
    print("|---:|---|---:|---:|---:|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        model = make_model(Path(made) / "model", args.shape)
        for tokens in map(int, args.tokens.split(",")):
            for row in table_rows(Path(made), model, tokens, args):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main_exit("bench/training.py", main)
