"""What an adapter costs on the CPU: none, by vLLM's own products, by ours.

    python bench/cpu_lora.py [--at_once=32]

The bundled model in offline LLM.generate: replies of 300 tokens to short prompts, and of one token
to prompts of 600, as drafts are. Seconds, and times those without an adapter. Prints Markdown.
"""

import random
import tempfile
import time
from pathlib import Path

from stack import in_a_process, make_adapter, offline_engine

from self_lengthen.cli import Parser, at_least
from self_lengthen.errors import main_exit

WORKLOADS = {"writing": (30, 300), "reading": (600, 1)}  # tokens of a prompt, of its reply
WARM_UP = (30, 20)
PROMPT_TOKENS = range(300, 2000)  # of which prompts are drawn: no special ones


def seconds(way: str, at_once: int, adapter: str) -> list[float]:
    """Of each workload, after one that warms up."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    changes = {"worker_cls": "auto"} if way == "vLLM" else {}
    llm, request = offline_engine("" if way == "none" else adapter, cpu=True, **changes)
    rng, spent = random.Random(1), []
    for prompt_tokens, tokens in [WARM_UP, *WORKLOADS.values()]:
        prompts = [
            TokensPrompt(prompt_token_ids=rng.choices(PROMPT_TOKENS, k=prompt_tokens))
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
    print("| LoRA |", " | ".join(f"{name}, s | times none" for name in WORKLOADS), "|")
    print("|---|" + "---:|---:|" * len(WORKLOADS))
    with tempfile.TemporaryDirectory() as folder:
        adapter, none = str(make_adapter(Path(folder))), []
        for way in ("none", "vLLM", "ours"):
            spent = in_a_process(seconds, way, args.at_once, adapter, cpu=True)
            none = none or spent
            cells = [f"{s:.1f} | {s / first:.2f}" for s, first in zip(spent, none, strict=True)]
            print("|", " | ".join([way, *cells]), "|", flush=True)


if __name__ == "__main__":
    main_exit("bench/cpu_lora.py", main)
