"""Tokens a second through the whole stack, against the engine alone, and the CPU time of each.

    python bench/generation.py [--at_once=64,256,512] [--tokens=128]

The same prompts and sampling through vLLM's offline LLM.generate, and through our client, API
server, controller and worker; the base model and a LoRA adapter. Every reply has --tokens tokens
(its end token is ignored); `watched` is with the worker looking for repetitions as it goes. A
second table says where the CPU time goes: of a machine whose cores all work, that is where the
tokens go. On the CPU, or on one GPU where there is one. Prints Markdown.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
from stack import (
    ADAPTER,
    CONTEXT_TOKENS,
    MODEL,
    AskingEndpoint,
    Served,
    cpu_seconds,
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
COLUMNS = ("engine", "worker", "API server", "others", "client")


@dataclass(frozen=True)
class Measured:
    """Tokens of all replies, the seconds they took, and CPU seconds by kind of process."""

    tokens: int
    seconds: float
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def cpu_ms(self, kind: str) -> float:
        """Of each 1,000 tokens."""
        return 1e6 * self.cpu[kind] / self.tokens


def prompts(count: int) -> list[str]:
    seeds = [row["prompt"] for row in read_rows(MODEL.parents[2] / "seeds" / "llama.jsonl")]
    return [seeds[number % len(seeds)] for number in range(count)]


def offline(counts: list[int], tokens: int, adapter: str, cpu: bool) -> dict[int, Measured]:
    """The engine alone, by the number of prompts at once."""
    from vllm import SamplingParams

    llm, request = offline_engine(adapter, cpu=cpu)
    measured = {}
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
        started, cpu_before = time.monotonic(), cpu_of_this_tree()
        outputs = llm.chat(chats, sampling, lora_request=request, use_tqdm=False)
        spent = {"alone": cpu_of_this_tree() - cpu_before}
        made = sum(len(output.outputs[0].token_ids) for output in outputs)
        measured[count] = Measured(made, time.monotonic() - started, spent)
    return measured


def cpu_of_this_tree() -> float:
    """CPU seconds of this process and of what it has started."""
    own = psutil.Process()
    return sum(map(cpu_seconds, (own, *own.children(recursive=True))))


async def online(
    server: Served, model: str, counts: list[int], tokens: int, rules: tuple[NgramRule, ...] = ()
) -> dict[int, Measured]:
    """The same through the stack; with `rules` the worker watches every reply."""
    measured = {}
    sampling = Sampling(max_tokens=tokens, stop=(), stop_repeat=rules)
    whole = {"ignore_eos": True}
    async with AskingEndpoint(server.base_url, lambda request: {**request, **whole}) as endpoint:
        for count in [counts[0], *counts]:
            started, client = time.monotonic(), time.process_time()
            before = server.cpu_seconds()
            asking = [
                endpoint.chat(model, prompt, sampling, seed=number)
                for number, prompt in enumerate(prompts(count))
            ]
            replies = await asyncio.gather(*asking)
            seconds, client = time.monotonic() - started, time.process_time() - client
            after = server.cpu_seconds()
            spent = {kind: after[kind] - before[kind] for kind in after} | {"client": client}
            made = sum(reply.completion_tokens for reply in replies)
            measured[count] = Measured(made, seconds, spent)
    return measured


def compare(name: str, counts: list[int], tokens: int, adapter: str) -> list[str]:
    """Prints the rows of the first table; those of the second."""
    cpu = not visible_gpus()
    alone = in_a_process(offline, counts, tokens, adapter, cpu, cpu=cpu)
    adapters = {ADAPTER: Path(adapter)} if adapter else {}
    with served(adapters, max_model_len=CONTEXT_TOKENS) as server:
        model = ADAPTER if adapter else BASE_MODEL
        through = uvloop.run(online(server, model, counts, tokens))
        watched = uvloop.run(online(server, model, counts, tokens, NEVER_BROKEN))
    spent = []
    for count in counts:
        cells = [name, str(count), f"{alone[count].rate:.0f}"]
        for way in (through, watched):
            cells += [f"{way[count].rate:.0f}", f"{way[count].rate / alone[count].rate:.2f}"]
        print("|", " | ".join(cells), "|", flush=True)
        milliseconds = [f"{alone[count].cpu_ms('alone'):.0f}"]
        milliseconds += [f"{through[count].cpu_ms(kind):.0f}" for kind in COLUMNS]
        milliseconds += [f"{watched[count].cpu_ms(kind):.0f}" for kind in ("engine", "worker")]
        spent.append(" | ".join([name, str(count), *milliseconds]))
    return spent


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
        spent = compare("base", args.at_once, args.tokens, "")
        spent += compare("LoRA", args.at_once, args.tokens, str(make_adapter(Path(folder))))
    print("\nCPU milliseconds for 1,000 tokens:\n")
    print(f"| model | at once | offline | {' | '.join(COLUMNS)} | watched: engine | worker |")
    print(f"|---|{'---:|' * 9}")
    for cells in spent:
        print(f"| {cells} |")


if __name__ == "__main__":
    main_exit("bench/generation.py", main)
