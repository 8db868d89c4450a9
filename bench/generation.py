"""Tokens a second through the whole stack, against the engine alone.

    python bench/generation.py [--at_once=64,256,512] [--tokens=128]

The same prompts and sampling through vLLM's offline LLM.generate, and through our client, API
server, controller and worker; the base model and a LoRA adapter. Every reply has --tokens tokens
(its end token is ignored); `watched` is with the worker looking for repetitions as it goes. On the
CPU, or on one GPU where there is one. Prints Markdown.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import uvloop
from stack import (
    ADAPTER,
    CONTEXT_TOKENS,
    MODEL,
    AskingEndpoint,
    in_a_process,
    make_adapter,
    offline_engine,
    served,
)

from self_lengthen.cli import Parser, at_least
from self_lengthen.devices import visible_gpus
from self_lengthen.endpoint import Sampling
from self_lengthen.errors import main_exit
from self_lengthen.family import NgramRule
from self_lengthen.files import read_rows
from self_lengthen.runfolder import BASE_MODEL

SAMPLING = Sampling()
NEVER_BROKEN = (NgramRule("word", CONTEXT_TOKENS),)


def prompts(count: int) -> list[str]:
    seeds = [row["prompt"] for row in read_rows(MODEL.parents[2] / "seeds" / "llama.jsonl")]
    return [seeds[number % len(seeds)] for number in range(count)]


def offline(counts: list[int], tokens: int, adapter: str, cpu: bool) -> dict[int, float]:
    """Tokens a second of the engine alone, by the number of prompts at once."""
    from vllm import SamplingParams

    llm, request = offline_engine(adapter, cpu=cpu)
    rates = {}
    for count in [counts[0], *counts]:  # the first is to warm up
        sampling = [
            SamplingParams(
                temperature=SAMPLING.temperature,
                top_p=SAMPLING.top_p,
                top_k=SAMPLING.top_k,
                repetition_penalty=SAMPLING.repetition_penalty,
                seed=number,
                max_tokens=tokens,
                ignore_eos=True,
            )
            for number in range(count)
        ]
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts(count)]
        started = time.monotonic()
        outputs = llm.chat(chats, sampling, lora_request=request, use_tqdm=False)
        spent = time.monotonic() - started
        rates[count] = sum(len(output.outputs[0].token_ids) for output in outputs) / spent
    return rates


async def online(
    base_url: str, model: str, counts: list[int], tokens: int, rules: tuple[NgramRule, ...] = ()
) -> dict[int, float]:
    """The same through the stack; with `rules` the worker watches every reply."""
    rates = {}
    sampling = Sampling(max_tokens=tokens, stop=(), stop_repeat=rules)
    whole = {"ignore_eos": True}
    async with AskingEndpoint(base_url, lambda request: {**request, **whole}) as endpoint:
        for count in [counts[0], *counts]:
            started = time.monotonic()
            asking = [
                endpoint.chat(model, prompt, sampling, seed=number)
                for number, prompt in enumerate(prompts(count))
            ]
            replies = await asyncio.gather(*asking)
            spent = time.monotonic() - started
            rates[count] = sum(reply.completion_tokens for reply in replies) / spent
    return rates


def compare(name: str, counts: list[int], tokens: int, adapter: str) -> None:
    cpu = not visible_gpus()
    rates = in_a_process(offline, counts, tokens, adapter, cpu, cpu=cpu)
    adapters = {ADAPTER: Path(adapter)} if adapter else {}
    with served(adapters, max_model_len=CONTEXT_TOKENS) as base_url:
        model = ADAPTER if adapter else BASE_MODEL
        through = uvloop.run(online(base_url, model, counts, tokens))
        watched = uvloop.run(online(base_url, model, counts, tokens, NEVER_BROKEN))
    for count in counts:
        cells = [name, str(count), f"{rates[count]:.0f}"]
        for way in (through, watched):
            cells += [f"{way[count]:.0f}", f"{way[count] / rates[count]:.2f}"]
        print("|", " | ".join(cells), "|", flush=True)


def numbers(text: str) -> list[int]:
    return [at_least(1)(part) for part in text.split(",")]


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--at_once", type=numbers, default=[64, 256, 512])
    parser.add_argument("--tokens", type=at_least(1), default=128, help="of every reply")
    args = parser.parse_args()
    print("| model | at once | offline, tok/s | stack, tok/s | ratio | watched, tok/s | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        compare("base", args.at_once, args.tokens, "")
        compare("LoRA", args.at_once, args.tokens, str(make_adapter(Path(folder))))


if __name__ == "__main__":
    main_exit("bench/generation.py", main)
