"""A reply while the engine writes it: read to its end, or to where it is doomed.

Knows no engine: an output has `.outputs[0]` with `text`, `token_ids` and `finish_reason`, each of
which goes on from the output before (vLLM's DELTA, or the one output of FINAL_ONLY).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from self_lengthen.family import NgramRule
from self_lengthen.repetition import REPETITION, TextWatch

WATCHED_TOKENS = 32  # read at a time: a doomed text costs half of them more, on average


@dataclass
class Written:
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


def text_watch(params: dict[str, Any]) -> TextWatch:
    """What a request wants to be stopped at: `stop_repeat`, a list of n-gram rules.

    They are about the whole text: an assistant turn that the request has opened, with the reply.
    """
    rules = [NgramRule(**rule) for rule in params.get("stop_repeat") or ()]
    opened = rules and params.get("continue_final_message")
    return TextWatch(rules, params["messages"][-1]["content"] if opened else "")


async def read_reply(outputs: AsyncGenerator[Any, None], watch: TextWatch) -> Written:
    """All of a reply; where `watch` sees a repetition the generation is ended (REPETITION)."""
    written = Written()
    async with aclosing(outputs):  # vLLM aborts a request whose outputs nobody reads
        async for output in outputs:
            piece = output.outputs[0]
            written.text += piece.text
            written.tokens += len(piece.token_ids)
            written.finish_reason = piece.finish_reason
            if piece.finish_reason is None and watch.feed(piece.text):
                written.finish_reason = REPETITION
                break
    return written
