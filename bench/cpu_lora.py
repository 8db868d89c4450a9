"""What an adapter costs on the CPU: none, by vLLM's own products, by ours.

    python bench/cpu_lora.py [--at_once=32]

The bundled model in offline LLM.generate: replies of 300 tokens to short prompts, and of one token
to prompts of 600, as drafts are. Seconds, and times those without an adapter. Prints Markdown.
"""

import multiprocessing
import os
import random
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stack import MODEL, make_adapter

from self_lengthen.cli import Parser, at_least
from self_lengthen.errors import main_exit
from self_lengthen.serving.plan import CPU_SEQUENCES, cpu_env

CONTEXT_TOKENS = 4096
WORKLOADS = {(30, 300): "writing", (600, 1): "reading"}  # (tokens of a prompt, of its reply)
FIRST_TOKEN = 300  # prompts are random tokens above the special ones


def seconds(way: str, at_once: int, adapter: str) -> list[float]:
    """Of each workload, after one that warms up."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    from self_lengthen.serving.worker import cpu_settings, lora_limits

    worker = Namespace(cpu=True, max_model_len=CONTEXT_TOKENS, max_lora_rank=8)
    worker.adapter = [] if way == "none" else [adapter]
    options = {**cpu_settings(worker), **lora_limits(worker)}
    if way == "vLLM":
        del options["worker_cls"]
    llm = LLM(str(MODEL), max_model_len=CONTEXT_TOKENS, max_num_seqs=CPU_SEQUENCES, **options)
    request = LoRARequest("adapter", 1, adapter) if worker.adapter else None
    rng, spent = random.Random(1), []
    for prompt_tokens, tokens in [(30, 20), *WORKLOADS]:
        prompts = [
            TokensPrompt(prompt_token_ids=rng.choices(range(FIRST_TOKEN, 2000), k=prompt_tokens))
            for _ in range(at_once)
        ]
        sampling = SamplingParams(seed=1, max_tokens=tokens, ignore_eos=True)
        started = time.monotonic()
        llm.generate(prompts, sampling, use_tqdm=False, lora_request=request)
        spent.append(time.monotonic() - started)
    return spent[1:]


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--at_once", type=at_least(1), default=32)
    args = parser.parse_args()
    os.environ.update(cpu_env())
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    print("| LoRA | writing, s | times none | reading, s | times none |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        adapter, none = str(make_adapter(Path(folder))), []
        for way in ("none", "vLLM", "ours"):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                spent = alone.submit(seconds, way, args.at_once, adapter).result()
            none = none or spent
            cells = [f"{s:.1f} | {s / first:.2f}" for s, first in zip(spent, none, strict=True)]
            print("|", " | ".join([way, *cells]), "|", flush=True)


if __name__ == "__main__":
    main_exit("bench/cpu_lora.py", main)
