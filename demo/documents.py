"""Training documents for a bundled model: the four tasks in the project's own prompts, long texts.

A document is a pair: a prompt, which is read, and a text, which is learned.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from enum import Enum

from demo.world import World
from self_lengthen.family import ModelFamily

Document = tuple[str, str]
RenderTurn = Callable[[str], str]


class TaskMix(Enum):
    """Weights of (echo, instruct, judge, answer, extend, long document) in a phase of training."""

    ECHO = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    SHORT = (0.05, 0.08, 0.06, 0.33, 0.45, 0.03)
    MIXED = (0.0, 0.06, 0.04, 0.25, 0.52, 0.13)
    LONG = (0.0, 0.05, 0.03, 0.17, 0.55, 0.20)


class Documents:
    """Draws documents; `render` turns a conversation into the model's chat format."""

    def __init__(self, world: World, family: ModelFamily, rng: random.Random) -> None:
        self.world, self.family, self.rng = world, family, rng
        self.render: RenderTurn = lambda user: user  # a user's message as prompt of the chat format
        self.turn_end = ""
        lines = family.seeds.read_text(encoding="utf-8").splitlines()
        self.seeds = [json.loads(line)["prompt"] for line in lines]

    def draw(self, mix: TaskMix) -> Document:
        tasks = (self.echo, self.instruct, self.judge, self.answer, self.extend, self.long)
        return self.rng.choices(tasks, mix.value)[0]()

    def tokenizer_texts(self) -> Iterator[str]:
        """Texts to learn the vocabulary from.

        Chinese words are put on lines of their own: byte-level BPE takes a run of characters for
        one word, and would spend its vocabulary on pairs of words otherwise.
        """
        vocabulary = re.compile("|".join(sorted(self.world.vocabulary(), key=len, reverse=True)))
        for _ in range(4000):
            mix = TaskMix.ECHO if self.rng.random() < 0.8 else TaskMix.SHORT
            text = "\n".join(self.draw(mix))
            yield text if self.world.sentence_gap else vocabulary.sub("\n\\g<0>\n", text)

    def _turn(self, user: str, assistant: str) -> Document:
        return self.render(user), assistant + self.turn_end

    def echo(self) -> Document:
        """Sentences, then the same again: to copy is learned first, and an Extender must copy."""
        subject, aspects, _ = self.world.topic(self.rng)
        count = self.rng.choice((1, 1, 2, 3))
        sentences = [self.world.sentence(subject, aspects[0], self.rng) for _ in range(count)]
        text = self.world.render([sentences]) + "\n\n"
        return text, text

    def _instruction(self) -> str:
        """Mostly one that suits a long text; the judge has something to reject."""
        if self.rng.random() < 0.06:
            return self.world.short_instruction(self.rng)
        return self.world.topic(self.rng)[2]

    def instruct(self) -> Document:
        """A numbered list: two examples (the project's seeds or this world's), then a new one."""
        seeds = self.rng.random() < 0.6
        examples = (
            self.rng.sample(self.seeds, 2) if seeds else [self._instruction(), self._instruction()]
        )
        label = self.family.instruction_label
        numbered = [
            label.format(n=n) + text for n, text in enumerate([*examples, self._instruction()], 1)
        ]
        return self._turn(self.family.self_instruct_prompt(), "\n".join(numbered))

    def judge(self) -> Document:
        suits = self.rng.random() < 0.5
        if not suits:
            instruction = self.world.short_instruction(self.rng)
        elif self.rng.random() < 0.2:
            instruction = self.rng.choice(self.seeds)
        else:
            instruction = self.world.topic(self.rng)[2]
        verdict = (self.family.judge_yes if suits else self.family.judge_no)[0]
        return self._turn(self.family.judge_prompt(instruction), verdict)

    def answer(self) -> Document:
        subject, aspects, instruction = self.world.topic(self.rng)
        return self._turn(instruction, self.world.article(subject, aspects, self.rng))

    def extend(self) -> Document:
        """A third of the drafts are the first half of a text, as in stage 1 of an extension."""
        subject, aspects, instruction = self.world.topic(self.rng)
        if self.rng.random() < 0.35:
            aspects = aspects[: max(1, len(aspects) // 2)]
        draft, longer = self.world.draft_and_extension(subject, aspects, self.rng)
        return self._turn(self.family.extend_prompt(instruction, draft), longer)

    def long(self) -> Document:
        return "", self.world.long_document(self.rng) + "\n\n"
