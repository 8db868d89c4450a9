"""A synthetic world that the bundled models write about: slots, sentences, articles.

A world is data (demo/english.py, demo/chinese.py); this module turns it into the four tasks of the
pipeline (write an instruction, judge one, answer one, extend an answer), demands for a length, and
long documents.
Everything takes a `random.Random`, so that a seed fixes every text.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLOT = re.compile(r"\{(\w+)\}")

# A text's scale: the mean number of sentences that its paragraphs have after their opener.
# Drafts that the Extender learns from: of every scale that it will meet.
DRAFT_SCALES = (0, 1, 1, 2, 2, 4, 6, 8)
LONG_SCALES = (1, 2, 4, 6, 8)
LONGEST_PARAGRAPH = 17  # sentences; here an Extender adds no more, so that texts stay finite


def words(text: str) -> list[str]:
    return text.split()


@dataclass(frozen=True)
class Habits:
    """How much is written. Mostly little: the rest is there for fine-tuning to find."""

    # How likely a paragraph gets a sentence after its opener, then another, and so on -> weight,
    answer_goes_on: Mapping[float, float]
    extension_goes_on: Mapping[float, float]  # and so for those that the Extender adds;
    most: int  # but no more than that.


@dataclass(frozen=True)
class World:
    """Vocabulary and sentence patterns of one language."""

    subjects: Sequence[str]
    aspects: Mapping[str, Sequence[str]]  # aspect -> its nouns
    slots: Mapping[str, Sequence[str]]  # slot name -> words that fill it
    openers: Mapping[str, str]  # aspect -> how a paragraph about it begins
    sentences: Sequence[str]
    instructions: Sequence[str]
    short_instructions: Sequence[str]  # questions that a long text does not suit
    aspect_counts: Sequence[int]  # how many aspects an instruction asks for
    length_demands: Sequence[str]  # ways to add a {constraint} to an {instruction}
    habits: Habits
    last_habits: Habits  # in the last phase of training
    sentence_gap: str
    list_comma: str
    list_and: str

    def vocabulary(self) -> set[str]:
        lists = [self.subjects, list(self.aspects), *self.aspects.values(), *self.slots.values()]
        return {word for words_ in lists for word in words_}

    def fill(self, pattern: str, rng: random.Random, **given: str) -> str:
        """`pattern` with every slot filled; a slot that occurs twice gets two different words."""
        used: dict[str, list[str]] = {}

        def word(match: re.Match[str]) -> str:
            name = match[1]
            if name in given:
                return given[name]
            choices = self.aspects[given["aspect"]] if name == "noun" else self.slots[name]
            drawn = used.setdefault(name, [])
            pick = rng.choice([c for c in choices if c not in drawn])
            drawn.append(pick)
            return pick

        text = SLOT.sub(word, pattern)
        return text[0].upper() + text[1:]

    def sentence(self, subject: str, aspect: str, rng: random.Random) -> str:
        return self.fill(rng.choice(self.sentences), rng, subject=subject, aspect=aspect)

    def opener(self, aspect: str, rng: random.Random) -> str:
        return self.fill(self.openers[aspect], rng, aspect=aspect)

    def paragraph(self, subject: str, aspect: str, extra: int, rng: random.Random) -> list[str]:
        """An opener and `extra` further sentences."""
        more = [self.sentence(subject, aspect, rng) for _ in range(extra)]
        return [self.opener(aspect, rng), *more]

    def render(self, paragraphs: Sequence[Sequence[str]], separator: str = "\n\n") -> str:
        return separator.join(self.sentence_gap.join(p) for p in paragraphs)

    def topic(self, rng: random.Random) -> tuple[str, list[str], str]:
        """(subject, aspects, instruction that asks for them).

        The aspects keep the world's order, in the instruction and so in every text: what comes next
        and that nothing comes after the last one are easy to see.
        """
        subject = rng.choice(self.subjects)
        chosen = set(rng.sample(list(self.aspects), rng.choice(self.aspect_counts)))
        aspects = [aspect for aspect in self.aspects if aspect in chosen]
        listed = self.list_comma.join(aspects[:-1]) + self.list_and + aspects[-1]
        pattern = rng.choice(self.instructions)
        return subject, aspects, self.fill(pattern, rng, subject=subject, aspects=listed)

    def short_instruction(self, rng: random.Random) -> str:
        return self.fill(
            rng.choice(self.short_instructions), rng, subject=rng.choice(self.subjects)
        )

    def paragraphs(
        self, subject: str, aspects: Sequence[str], scale: int, rng: random.Random
    ) -> list[list[str]]:
        """One paragraph an aspect, in order: a text ends when the last aspect has had its own."""
        return [self.paragraph(subject, a, rng.randint(0, 2 * scale), rng) for a in aspects]

    def article(
        self, subject: str, aspects: Sequence[str], habits: Habits, rng: random.Random
    ) -> str:
        """What the untrained Generator writes: mostly few sentences a paragraph."""
        goes_on = _drawn(habits.answer_goes_on, rng)
        counts = [_run_length(goes_on, habits.most, rng) for _ in aspects]
        return self.render(
            [self.paragraph(subject, a, n, rng) for a, n in zip(aspects, counts, strict=True)]
        )

    def draft_and_extension(
        self, subject: str, aspects: Sequence[str], habits: Habits, rng: random.Random
    ) -> tuple[str, str]:
        """A draft of any scale, and the same with sentences added to its paragraphs."""
        draft = self.paragraphs(subject, aspects, rng.choice(DRAFT_SCALES), rng)
        goes_on = _drawn(habits.extension_goes_on, rng)
        longer = []
        for paragraph, aspect in zip(draft, aspects, strict=True):
            most = min(habits.most, LONGEST_PARAGRAPH - len(paragraph))
            count = _run_length(goes_on, most, rng)
            longer.append(paragraph + [self.sentence(subject, aspect, rng) for _ in range(count)])
        separator = rng.choice(["\n\n", "\n\n", "\n"])  # a training draft may be joined by newlines
        return self.render(draft, separator), self.render(longer)

    def long_article(self, subject: str, aspects: Sequence[str], rng: random.Random) -> str:
        """A text of any scale, so that far positions and the end of long texts are known."""
        return self.render(self.paragraphs(subject, aspects, rng.choice(LONG_SCALES), rng))

    def with_length_demand(self, instruction: str, constraint: str, rng: random.Random) -> str:
        """`instruction` that also asks for a length."""
        pattern = rng.choice(self.length_demands)
        return pattern.replace("{constraint}", constraint).replace("{instruction}", instruction)


def _drawn(weights: Mapping[float, float], rng: random.Random) -> float:
    return rng.choices(list(weights), list(weights.values()))[0]


def _run_length(goes_on: float, most: int, rng: random.Random) -> int:
    """Geometric: another one with probability `goes_on`. What goes beyond `most` counts as that."""
    count = 0
    while rng.random() < goes_on:
        count += 1
    return min(count, most)
