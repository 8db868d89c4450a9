"""Training documents for a bundled model: the project's tasks in its own prompts, and long texts.

A document is a prompt with the text that follows it; both are learned, the text above all.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from demo import chinese, english
from demo.world import World
from self_lengthen.constraints import TYPES, Constraint
from self_lengthen.family import ModelFamily
from self_lengthen.lengths import Demand
from self_lengthen.text import count_words

Document = tuple[str, str]
RenderTurn = Callable[[str], str]

WORLDS = {"zh": chinese.WORLD, "en": english.WORLD}
ADD_LENGTH_PROMPTS = Path(__file__).resolve().parent.parent / "eval" / "prompts"
ROUND_TO_WORDS = 50  # lengths that the tiny models hear of are multiples of this


class TaskMix(Enum):
    """Weights of (echo, instruct, judge, answer, extend, add length, long) in a phase."""

    COPY = (0.40, 0.05, 0.12, 0.23, 0.10, 0.10, 0.00)
    TASKS = (0.02, 0.05, 0.07, 0.22, 0.51, 0.08, 0.05)
    FAR = (0.00, 0.04, 0.04, 0.20, 0.54, 0.06, 0.12)
    LAST = (0.00, 0.04, 0.04, 0.28, 0.46, 0.15, 0.03)


class Documents:
    """Draws documents; `render` turns a user's message into a prompt of the chat format."""

    def __init__(self, world: World, family: ModelFamily, rng: random.Random) -> None:
        self.world, self.family, self.rng = world, family, rng
        self.habits = world.habits
        self.render: RenderTurn = lambda user: user
        self.turn_end = ""
        lines = family.seeds.read_text(encoding="utf-8").splitlines()
        self.seeds = [json.loads(line)["prompt"] for line in lines]
        prompt = ADD_LENGTH_PROMPTS / f"add_length_{family.language}.md"
        self.add_length_prompt = prompt.read_text(encoding="utf-8").rstrip("\n")

    def draw(self, mix: TaskMix) -> Document:
        tasks = (
            *(self.echo, self.instruct, self.judge, self.answer, self.extend),
            *(self.add_length, self.long),
        )
        self.habits = self.world.last_habits if mix is TaskMix.LAST else self.world.habits
        return self.rng.choices(tasks, mix.value)[0]()

    def tokenizer_texts(self) -> Iterator[str]:
        """Texts to learn the vocabulary from.

        Chinese words are put on lines of their own: byte-level BPE takes a run of characters for
        one word, and would spend its vocabulary on pairs of words otherwise.
        """
        vocabulary = re.compile("|".join(sorted(self.world.vocabulary(), key=len, reverse=True)))
        for _ in range(3000):
            text = "".join(self.draw(TaskMix.COPY))
            yield text if self.world.sentence_gap else vocabulary.sub("\n\\g<0>\n", text)

    def _turn(self, user: str, assistant: str) -> Document:
        return self.render(user), assistant + self.turn_end

    def echo(self) -> Document:
        """A few sentences twice: an Extender must copy its draft."""
        subject, aspects, _ = self.world.topic(self.rng)
        sentences = [self.world.sentence(subject, aspects[0], self.rng) for _ in range(3)]
        text = self.world.render([sentences[: self.rng.randint(1, 3)]]) + "\n\n"
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
        return self._turn(instruction, self.world.article(subject, aspects, self.habits, self.rng))

    def extend(self) -> Document:
        """A third of the drafts are the first half of a text, as in stage 1 of an extension."""
        subject, aspects, instruction = self.world.topic(self.rng)
        if self.rng.random() < 0.35:
            aspects = aspects[: max(1, len(aspects) // 2)]
        draft, longer = self.world.draft_and_extension(subject, aspects, self.habits, self.rng)
        return self._turn(self.family.extend_prompt(instruction, draft), longer)

    def add_length(self) -> Document:
        """An instruction, and the same with a demand for a length woven in."""
        instruction = self.world.topic(self.rng)[2]
        constraint = self._constraint(self.rng.randint(1, 20) * ROUND_TO_WORDS)
        user = self.add_length_prompt.replace("{constraint}", constraint)
        user = user.replace("{instruction}", instruction)
        return self._turn(user, self.world.with_length_demand(instruction, constraint, self.rng))

    def long(self) -> Document:
        """A text of any length under a line that names its length and its aspects.

        So the model knows of lengths; that its answers should obey one, it has yet to be taught.
        """
        subject, aspects, instruction = self.world.topic(self.rng)
        text = self.world.long_article(subject, aspects, self.rng)
        constraint = self._constraint(count_words(text))
        heading = self.world.with_length_demand(instruction, constraint, self.rng)
        return heading + "\n\n", text + self.turn_end

    def _constraint(self, words: int) -> str:
        """A demand for a length that a text of so many words meets, as eval/ writes them."""
        below = max(words // ROUND_TO_WORDS, 1) * ROUND_TO_WORDS
        above = below + ROUND_TO_WORDS * self.rng.randint(1, 3)
        nearest = max(round(words / ROUND_TO_WORDS), 1) * ROUND_TO_WORDS
        kind = self.rng.choices(TYPES, (0.40, 0.25, 0.10, 0.25))[0]
        spelled = self.family.language == "zh" and self.rng.random() < 0.5
        constraint = demand(kind, nearest, below, above)
        return constraint.say(self.family.language, spelled=spelled)


def demand(kind: str, nearest: int, below: int, above: int) -> Constraint:
    """The demand of this type that a text of about `nearest` words meets."""
    numbers = {"about": (nearest, nearest), "range": (below, above)}
    numbers |= {"above": (below, None), "below": (None, above)}
    return Constraint(Demand(kind, *numbers[kind]))
