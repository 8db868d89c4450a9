"""An engine on paper, in virtual time: what steps 1 and 2 would cost on one GPU.

The steps, the fan-out, the watch on a reply and the checks are the real ones. The engine takes so
many requests into its batch, the others wait; a step of its decoding gives each one token and takes

    STEP_S + TEXT_S x (requests in the batch)

as a model of 7B parameters does on a GPU of 80 GB: its weights are read once a step, each text's KV
cache (about 2,000 tokens) as well. A token is a word. A third of the replies (by their seed) go on,
from a random place, with one sentence of 15 words again and again up to max_tokens.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from self_lengthen.endpoint import Reply, Sampling
from self_lengthen.pace import Load
from self_lengthen.serving.reply import WATCHED_TOKENS, read_reply, text_watch
from self_lengthen.text import count_words

STEP_S, TEXT_S = 0.010, 0.00004
BATCH = 256
FIRST_PART = 1 / 16  # of max_tokens are an initial response: the paper's 1,000 words to 16,384
GROWTH = 1.5  # of a stage
DEGENERATE_SHARE = 1 / 3
LOOP_WORDS = 15
BLOCK_WORDS = 60


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when there is nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now_s = max(self._now_s, self._scheduled[0].when())
        super()._run_once()


class VirtualEngine:
    """Takes an Endpoint's place. `seconds` is its time from the first request to the last reply."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(BATCH)
        self._running = self._asked = 0
        self.seconds = 0.0

    async def __aenter__(self) -> "VirtualEngine":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def load(self) -> Load:
        waiting = self._asked - self._running
        idle = 0.0 if waiting else 1 - self._running / BATCH
        return Load(1, BATCH, BATCH, self._running, waiting, idle)

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        words = reply_words(user, opened_with, seed, sampling.max_tokens)
        params: dict[str, Any] = {"stop_repeat": [asdict(rule) for rule in sampling.stop_repeat]}
        params |= {"messages": [{"content": opened_with}], "continue_final_message": True}
        self._asked += 1
        try:
            async with self._places:
                self._running += 1
                try:
                    written = await read_reply(
                        self._decode(words, sampling.max_tokens), text_watch(params)
                    )
                finally:
                    self._running -= 1
        finally:
            self._asked -= 1
        self.seconds = asyncio.get_running_loop().time()
        return Reply(written.text, written.finish_reason, count_words(user), written.tokens)

    async def _decode(self, words: list[str], limit: int) -> AsyncGenerator[Any, None]:
        end = "length" if len(words) >= limit else "stop"
        for at in range(0, len(words), WATCHED_TOKENS):
            piece = words[at : at + WATCHED_TOKENS]
            await asyncio.sleep(len(piece) * (STEP_S + TEXT_S * self._running))
            last = at + WATCHED_TOKENS >= len(words)
            text, reason = "".join(piece), end if last else None
            output = SimpleNamespace(text=text, token_ids=piece, finish_reason=reason)
            yield SimpleNamespace(outputs=[output])


def reply_words(user: str, opened_with: str, seed: int, limit: int) -> list[str]:
    """A reply word by word, each with the white space that follows it."""
    luck = random.Random(f"{seed}/{len(opened_with)}")
    asked = user.rpartition("Draft:\n")[2] if "Draft:\n" in user else ""
    wanted = GROWTH * count_words(asked) - count_words(opened_with) if asked else FIRST_PART * limit
    count = max(20, int(wanted * luck.uniform(0.7, 1.3)))
    start = luck.randrange(10**9)
    numbers = list(range(start, start + count))
    if luck.random() < DEGENERATE_SHARE:
        healthy = numbers[: luck.randrange(count)]
        loop = list(range(start - LOOP_WORDS, start))
        numbers = healthy + loop * (limit // LOOP_WORDS + 1)
    numbers = numbers[:limit]
    return [
        f"w{number:x}{'.' if at % BLOCK_WORDS == BLOCK_WORDS - 1 else ''}"
        + ("\n\n" if at % BLOCK_WORDS == BLOCK_WORDS - 1 else " ")
        for at, number in enumerate(numbers)
    ][:-1] + [f"w{numbers[-1]:x}."]


def run_virtually(work: Coroutine[Any, Any, Any]) -> Any:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        with suppress(RuntimeError):
            loop.close()
