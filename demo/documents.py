"""Training documents for a bundled model: the four tasks in the project's own prompts, and long texts."""

import json
import random
import re
from collections.abc import Callable, Iterator
from enum import Enum

from demo.world import World
from self_lengthen.family import ModelFamily

Messages = list[dict[str, str]]


class TaskMix(Enum):
    """Weights of (instruct, judge, answer, extend, long document) in a phase of training."""

    SHORT = (0.10, 0.07, 0.35, 0.45, 0.03)
    MIXED = (0.06, 0.04, 0.25, 0.52, 0.13)
    LONG = (0.05, 0.03, 0.17, 0.55, 0.20)


class Documents:
    """Draws documents; `render` turns a conversation into the model's chat format."""

    def __init__(self, world: World, family: ModelFamily, rng: random.Random) -> None:
        self.world, self.family, self.rng = world, family, rng
        self.render: Callable[[Messages], str] = lambda messages: "\n".join(
            m["content"] for m in messages
        )
        lines = family.seeds.read_text(encoding="utf-8").splitlines()
        self.seeds = [json.loads(line)["prompt"] for line in lines]

    def draw(self, mix: TaskMix) -> str:
        tasks = (self.instruct, self.judge, self.answer, self.extend, self.long)
        return self.rng.choices(tasks, mix.value)[0]()

    def tokenizer_texts(self) -> Iterator[str]:
        """Texts to learn the vocabulary from.

        Chinese words are put on lines of their own: byte-level BPE takes a run of characters for one
        word, and would spend its vocabulary on pairs of words otherwise.
        """
        vocabulary = re.compile("|".join(sorted(self.world.vocabulary(), key=len, reverse=True)))
        for _ in range(4000):
            text = self.answer() if self.rng.random() < 0.8 else self.draw(TaskMix.SHORT)
            yield text if self.world.sentence_gap else vocabulary.sub("\n\\g<0>\n", text)

    def _turn(self, user: str, assistant: str) -> str:
        return self.render(
            [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        )

    def _instruction(self) -> str:
        """Mostly one that suits a long text; the judge has something to reject."""
        if self.rng.random() < 0.06:
            return self.world.short_instruction(self.rng)
        return self.world.topic(self.rng)[2]

    def instruct(self) -> str:
        """A numbered list: two examples (seeds of the project, or of this world), then a new one."""
        seeds = self.rng.random() < 0.6
        examples = (
            self.rng.sample(self.seeds, 2) if seeds else [self._instruction(), self._instruction()]
        )
        label = self.family.instruction_label
        numbered = [
            label.format(n=n) + text for n, text in enumerate([*examples, self._instruction()], 1)
        ]
        return self._turn(self.family.self_instruct_prompt(), "\n".join(numbered))

    def judge(self) -> str:
        suits = self.rng.random() < 0.5
        if not suits:
            instruction = self.world.short_instruction(self.rng)
        elif self.rng.random() < 0.2:
            instruction = self.rng.choice(self.seeds)
        else:
            instruction = self.world.topic(self.rng)[2]
        verdict = (self.family.judge_yes if suits else self.family.judge_no)[0]
        return self._turn(self.family.judge_prompt(instruction), verdict)

    def answer(self) -> str:
        subject, aspects, instruction = self.world.topic(self.rng)
        return self._turn(instruction, self.world.article(subject, aspects, self.rng))

    def extend(self) -> str:
        """A third of the drafts are the first half of a text, as in stage 1 of an extension."""
        subject, aspects, instruction = self.world.topic(self.rng)
        if self.rng.random() < 0.35:
            aspects = aspects[: max(1, len(aspects) // 2)]
        draft, longer = self.world.draft_and_extension(subject, aspects, self.rng)
        return self._turn(self.family.extend_prompt(instruction, draft), longer)

    def long(self) -> str:
        return self.world.long_document(self.rng) + "\n\n"
