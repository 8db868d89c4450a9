"""Two-stage extension of one response: text in, text out, an endpoint in between.

One attempt is three micro-rounds from inputs = best = initial. A micro-round extends the first half
of the text (stage 1), keeps two thirds of what came back as a prefix, and has the Extender go on
from that prefix over the whole text (stage 2). The prefix shows stage 2 how much to expand; the cut
third avoids an abrupt ending. A round whose text fails the check, or is no longer than the best, is
void. Stage 2 may be stopped at its first repetition, and is left out when its prefix repeats; stage
1 may not, for its last third is cut away before anything is checked.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from self_lengthen.endpoint import ContextOverflowError, Reply, Sampling
from self_lengthen.family import ModelFamily, NgramRule
from self_lengthen.filters import Reason, check_response
from self_lengthen.repetition import TextWatch
from self_lengthen.text import count_words, former_half, join_continuation, keep_prefix

MICRO_ROUNDS = 3  # paper's release; --micro_rounds
MIN_GROWTH = 1.2  # paper's release: an extension adds more than a fifth or is dropped


class Chat(Protocol):
    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply: ...


@dataclass(frozen=True)
class Round:
    """One micro-round: the words it reached, and why it is void (None: it counts)."""

    words: int
    reason: str | None
    finish_reason: str | None


@dataclass(frozen=True)
class Extension:
    """Result of one attempt. `reason` is None when it is a success."""

    text: str
    reason: str | None
    rounds: list[Round] = field(default_factory=list)


def call_seed(*parts: object) -> int:
    """A 31-bit seed for one call from the names of what it is for, in whatever order calls end."""
    return zlib.crc32("/".join(map(str, parts)).encode()) & 0x7FFFFFFF


async def extend_once(
    chat: Chat,
    model: str,
    family: ModelFamily,
    instruction: str,
    initial: str,
    sampling: Sampling,
    seed_of: Callable[[str], int],
    micro_rounds: int = MICRO_ROUNDS,
) -> Extension:
    """One attempt at a text of more than MIN_GROWTH times the words of `initial`.

    `seed_of(name)` gives the sampling seed of the call with that name, such as "round1-stage2".
    """
    best = initial
    rounds = []
    expanding = replace(sampling, stop_repeat=())
    for number in range(1, micro_rounds + 1):

        async def extend(
            draft: str, stage: int, opened_with: str = "", number: int = number
        ) -> Reply:
            prompt = family.extend_prompt(instruction, draft)
            seed = seed_of(f"round{number}-stage{stage}")
            sampling_ = expanding if stage == 1 else sampling
            return await chat.chat(model, prompt, sampling_, seed=seed, opened_with=opened_with)

        text, round_ = await _micro_round(extend, family, best, sampling.stop_repeat)
        rounds.append(round_)
        if round_.reason is None:
            best = text
    if count_words(best) > MIN_GROWTH * count_words(initial):
        return Extension(best, None, rounds)
    return Extension(best, _why_not(rounds), rounds)


async def _micro_round(
    extend: Callable, family: ModelFamily, best: str, stop_repeat: Sequence[NgramRule]
) -> tuple[str, Round]:
    try:
        prefix = ""
        former = former_half(best)
        if former:  # a text of one block has no first half to expand
            prefix = keep_prefix((await extend(former, 1)).text)
            if TextWatch(stop_repeat, prefix).repeated:
                return best, Round(count_words(prefix), Reason.REPETITION, None)
        reply = await extend(best, 2, prefix)
    except ContextOverflowError:
        return best, Round(0, Reason.CONTEXT, None)
    text = join_continuation(prefix, reply.text).strip()
    words = count_words(text)
    reason = check_response(family, text, reply.finish_reason)
    if reason is None and words <= count_words(best):
        reason = Reason.NOT_LONGER
    return text, Round(words, reason, reply.finish_reason)


def _why_not(rounds: list[Round]) -> str:
    """The first failed check explains an attempt; without one, its text did not grow enough."""
    failed = [r.reason for r in rounds if r.reason not in (None, Reason.NOT_LONGER)]
    return failed[0] if failed else Reason.NOT_LONGER
