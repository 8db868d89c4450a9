"""Stopping a text at its first repetition saves tokens and changes nothing that is accepted.

The worker's own reading of a reply runs here over streams of tokens without an engine.
`python -m pytest tests/test_early_stop.py`
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict
from types import SimpleNamespace

from fakes import Call, FakeModel, said
from hypothesis import given
from hypothesis import strategies as st
from test_steps import give, instruction_row, perform, rows_of, summary_of  # noqa: F401

from self_lengthen.endpoint import Reply, Sampling
from self_lengthen.family import ModelFamily, NgramRule, load_family
from self_lengthen.filters import Reason, check_response
from self_lengthen.repetition import TextWatch
from self_lengthen.runfolder import EXTENDED, INITIAL, INSTRUCTIONS
from self_lengthen.serving.reply import read_reply, text_watch
from self_lengthen.steps import extend_responses, initial_responses


class Stream:
    """What an engine gives for one request: pieces of so many tokens; notes whether it was ended.

    A token is `characters` characters of the text.
    """

    def __init__(
        self, text: str, finish_reason: str = "stop", characters: int = 3, tokens: int = 4
    ) -> None:
        self.text, self.finish_reason = text, finish_reason
        self.characters, self.tokens = characters, tokens
        self.given = 0
        self.ended = False

    async def outputs(self) -> AsyncGenerator[SimpleNamespace, None]:
        size = self.characters * self.tokens
        pieces = [self.text[at : at + size] for at in range(0, len(self.text), size)] or [""]
        try:
            for number, piece in enumerate(pieces, 1):
                token_ids = [0] * -(-len(piece) // self.characters)
                self.given += len(token_ids)
                reason = self.finish_reason if number == len(pieces) else None
                output = SimpleNamespace(text=piece, token_ids=token_ids, finish_reason=reason)
                yield SimpleNamespace(outputs=[output])
        finally:
            self.ended = True


def read(stream: Stream, *rules: NgramRule, opening: str = "") -> Reply:
    written = asyncio.run(read_reply(stream.outputs(), TextWatch(rules, opening)))
    return Reply(written.text, written.finish_reason, 0, written.tokens)


class TestReadReply:
    def test_without_rules_a_reply_is_read_to_its_end(self):
        stream = Stream("so it is " * 50, "length")
        assert read(stream) == Reply("so it is " * 50, "length", 0, 150)

    def test_a_reply_that_does_not_repeat_comes_whole(self):
        text = " ".join(map(str, range(100)))
        assert read(Stream(text), NgramRule("word", 2)) == Reply(text, "stop", 0, 97)

    def test_a_repetition_ends_the_generation(self):
        stream = Stream("so it is " * 50)
        reply = read(stream, NgramRule("word", 3))
        # The fourth word completes the second window, the fifth the first repeat.
        assert (reply.text, reply.finish_reason) == (("so it is " * 50)[:24], "repetition")
        assert (reply.completion_tokens, stream.given, stream.ended) == (8, 8, True)

    def test_a_reply_that_ends_by_itself_says_so_although_it_repeats(self):
        assert read(Stream("so so so", tokens=9), NgramRule("word", 1)).finish_reason == "stop"

    def test_the_opening_of_the_turn_counts_when_it_is_to_be_continued(self):
        rules = [{"unit": "word", "n": 2}]
        messages = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "to be "}]
        params = {"messages": messages, "stop_repeat": rules}
        assert text_watch({**params, "continue_final_message": True}).feed("or to be. ") is False
        assert text_watch({**params, "continue_final_message": True}).feed("or to be or")
        assert not text_watch(params).feed("or to be or")
        assert not text_watch({"prompt": "to be", "stop_repeat": rules}).feed("or to be or")
        assert not text_watch({"messages": messages}).feed("to be to be to be")


WORDS = ["it", "is", "so", "中", "文", "。", "\n\n", ".", "version"]


@given(
    st.sampled_from(["qwen", "llama"]),
    st.lists(st.sampled_from(WORDS), max_size=40),
    st.sampled_from(["stop", "length"]),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_no_text_is_rejected_that_would_have_been_accepted(name, words, end, characters, tokens):
    family = load_family(name)
    rules = [NgramRule(rule.unit, 3) for rule in family.ngram_rules]
    family = SimpleNamespace(**{**vars(family), "ngram_rules": rules})
    text = " ".join(words)
    before = check_response(family, text, end)
    stopped = read(Stream(text, end, characters, tokens), *rules)
    after = check_response(family, stopped.text, stopped.finish_reason)
    assert (before is None) == (after is None)
    if after is None:
        assert stopped.text == text
    assert after in (before, Reason.REPETITION)


class Engine:
    """Answers as `FakeModel` does, token by token, and goes on for long where it repeats itself."""

    def __init__(self, family: ModelFamily) -> None:
        self.model = FakeModel(family, trouble=0.5)
        self.tokens = 0

    async def load(self) -> None:
        """It does not tell."""

    async def __aenter__(self) -> "Engine":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def chat(
        self, model: str, user: str, sampling: Sampling, *, seed: int, opened_with: str = ""
    ) -> Reply:
        await asyncio.sleep(0)
        answer = self.model(Call(model, user, sampling, seed, opened_with))
        if isinstance(answer, Exception):
            raise answer
        reply = said(answer) if isinstance(answer, str) else answer
        stream = Stream(*self.as_degenerate(reply, seed))
        params = {"stop_repeat": [asdict(rule) for rule in sampling.stop_repeat]}
        params["messages"] = [{"content": user}, {"content": opened_with}]
        params["continue_final_message"] = bool(opened_with)
        written = await read_reply(stream.outputs(), text_watch(params))
        self.tokens += stream.given
        return Reply(written.text, written.finish_reason, 0, written.tokens)

    @staticmethod
    def as_degenerate(reply: Reply, seed: int) -> tuple[str, str]:
        half = len(reply.text) // 2
        if reply.text[:half].strip() != reply.text[half:].strip():
            return reply.text, reply.finish_reason or ""
        return reply.text * (2 + seed % 5), "stop"


def test_steps_accept_the_same_texts_with_fewer_tokens(new_run, perform, family):  # noqa: F811
    accepted, tokens, rejected = {}, {}, {}
    for early_stop in ("yes", "no"):
        folder = new_run(family, early_stop, early_stop=early_stop)
        give(folder, INSTRUCTIONS, [instruction_row(number) for number in range(12)])
        engine = Engine(family)
        perform(initial_responses, folder, engine)
        perform(extend_responses, folder, engine)
        accepted[early_stop] = [rows_of(folder, step) for step in (INITIAL, EXTENDED)]
        rejected[early_stop] = [
            summary_of(folder, step)["attempts"] for step in (INITIAL, EXTENDED)
        ]
        tokens[early_stop] = engine.tokens
    for on, off in zip(*(accepted[choice] for choice in ("yes", "no")), strict=True):
        assert len(on) >= 10
        assert [without_void_rounds(row) for row in on] == [without_void_rounds(row) for row in off]
    for on, off in zip(rejected["yes"], rejected["no"], strict=True):
        assert on["total"] == off["total"]
        assert on["rejected"]["repetition"] >= off["rejected"]["repetition"] > 0
    assert tokens["yes"] < 0.9 * tokens["no"]


def without_void_rounds(row: dict) -> dict:
    """A row less what it says about micro-rounds that count for nothing."""
    return {**row, "rounds": [r for r in row.get("rounds", ()) if r["reason"] is None]}
