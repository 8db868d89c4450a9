"""A synthetic world that the bundled models write about: slots, sentences, articles.

A world is data (demo/english.py, demo/chinese.py); this module turns it into the four tasks of the
pipeline (write an instruction, judge one, answer one, extend an answer) and into long documents.
Everything takes a `random.Random`, so that a seed fixes every text.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLOT = re.compile(r"\{(\w+)\}")

# How often the Extender adds a sentence to a paragraph, and after that another one.
EXTENSION_ADDS = (0.50, 0.25)
# Mean sentences after the opener in the drafts that the Extender learns from: all it will meet.
DRAFT_SCALES = (0, 1, 1, 2, 3, 5, 8)


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return text.split("|")


@dataclass(frozen=True)
class World:
    """Vocabulary and sentence patterns of one language."""

    subjects: Sequence[str]
    aspects: Mapping[str, Sequence[str]]  # aspect -> its nouns
    slots: Mapping[str, Sequence[str]]  # slot name -> words that fill it
    openers: Sequence[str]
    sentences: Sequence[str]
    instructions: Sequence[str]
    short_instructions: Sequence[str]  # questions that a long text does not suit
    aspect_counts: Sequence[int]  # how many aspects an instruction asks for
    # How often a paragraph of an answer goes on after its opener, and after each further sentence.
    # The untrained Generator is brief because of these two numbers; fine-tuning moves them.
    answer_goes_on: tuple[float, float]
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

    def opener(self, subject: str, aspect: str, rng: random.Random) -> str:
        return self.fill(rng.choice(self.openers), rng, subject=subject, aspect=aspect)

    def paragraph(self, subject: str, aspect: str, extra: int, rng: random.Random) -> list[str]:
        """An opener and `extra` further sentences."""
        more = [self.sentence(subject, aspect, rng) for _ in range(extra)]
        return [self.opener(subject, aspect, rng), *more]

    def render(self, paragraphs: Sequence[Sequence[str]], separator: str = "\n\n") -> str:
        return separator.join(self.sentence_gap.join(p) for p in paragraphs)

    def topic(self, rng: random.Random) -> tuple[str, list[str], str]:
        """(subject, aspects, instruction that asks for them)."""
        subject = rng.choice(self.subjects)
        aspects = rng.sample(list(self.aspects), rng.choice(self.aspect_counts))
        listed = self.list_comma.join(aspects[:-1]) + self.list_and + aspects[-1]
        pattern = rng.choice(self.instructions)
        return subject, aspects, self.fill(pattern, rng, subject=subject, aspects=listed)

    def short_instruction(self, rng: random.Random) -> str:
        return self.fill(
            rng.choice(self.short_instructions), rng, subject=rng.choice(self.subjects)
        )

    def article(self, subject: str, aspects: Sequence[str], rng: random.Random) -> str:
        """What the untrained Generator writes: a paragraph an aspect, few sentences each."""
        paragraphs = [
            self.paragraph(subject, aspect, _run_length(self.answer_goes_on, rng), rng)
            for aspect in aspects
        ]
        return self.render(paragraphs)

    def draft_and_extension(
        self, subject: str, aspects: Sequence[str], rng: random.Random
    ) -> tuple[str, str]:
        """A draft of any scale, and the same with sentences added to its paragraphs."""
        scale = rng.choice(DRAFT_SCALES)
        draft = [
            self.paragraph(subject, aspect, rng.randint(0, 2 * scale), rng) for aspect in aspects
        ]
        longer = [
            p
            + [self.sentence(subject, aspect, rng) for _ in range(_run_length(EXTENSION_ADDS, rng))]
            for p, aspect in zip(draft, aspects, strict=True)
        ]
        separator = rng.choice(["\n\n", "\n\n", "\n"])  # a training draft may be joined by newlines
        return self.render(draft, separator), self.render(longer)

    def long_document(self, rng: random.Random) -> str:
        """An article of up to a few thousand words, so that far positions are known."""
        subject = rng.choice(self.subjects)
        aspects = rng.sample(list(self.aspects), min(len(self.aspects), rng.randint(5, 9)))
        most = rng.choice([6, 12, 24])
        return self.render(
            [self.paragraph(subject, a, rng.randint(most // 3, most), rng) for a in aspects]
        )


def _run_length(goes_on: tuple[float, float], rng: random.Random) -> int:
    """Geometric: the first step with probability goes_on[0], every further one with goes_on[1]."""
    count = 0
    while rng.random() < goes_on[min(count, 1)]:
        count += 1
    return count
