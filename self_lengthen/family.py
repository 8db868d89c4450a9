"""What may differ between two model families, as one value: `ModelFamily`.

A family is a folder of the repository's root that holds a `config.py` with a `FAMILY` of this
class, beside its `prompts/*.md` and its step scripts. The package knows no family by name:

    family = load_family("<folder>")
    family.extend_prompt(instruction, draft)

Reads `<folder>/config.py` and `<folder>/prompts/{self_instruct,judge,extend}.md`; writes nothing.
"""

import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from self_lengthen.errors import UserError

REPO_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class NgramRule:
    """A text is repetitive when one window of `n` of its units occurs twice."""

    unit: Literal["char", "word"]
    n: int


@dataclass(frozen=True)
class ModelFamily:
    """The complete list of ways in which two families may differ. Values only, no logic."""

    name: str  # the folder's name
    language: str  # of its prompts and seeds: "zh" | "en"
    model_types: tuple[str, ...]  # values of config.json's model_type that infer this family
    prompts: Path  # folder of self_instruct.md, judge.md, extend.md
    seeds: Path  # JSON lines of {"prompt": ...}
    instruction_label: str  # opens an item of the instruction list; {n} is its number
    list_stop: str  # where the list's next, unwanted item would begin
    judge_yes: tuple[str, ...]  # what the judge's answer may begin with
    judge_no: tuple[str, ...]
    pool_grows: bool  # accepted instructions join the pool of examples
    endings: str  # characters that a finished text may end with
    ngram_rules: tuple[NgramRule, ...]  # a text that breaks one of them is dropped
    self_talk_words: tuple[str, ...]  # a model's talk about its own rewriting, in the singular
    self_talk_first_lines: int  # where such talk is looked for
    self_talk_last_lines: int
    training_template: str  # LLaMA-Factory's name of the chat template
    system_opening: str  # what stands around the system prompt in the chat format
    system_closing: str
    draft_separator: str  # joins the kept lines of a draft in ext_sft

    def prompt(self, name: str) -> str:
        """The text of `prompts/<name>.md` without its trailing newline, its slots unfilled.

        Raises UserError when the file cannot be read.
        """
        return _read_prompt(self.prompts / f"{name}.md")

    def self_instruct_prompt(self) -> str:
        """The user's message that asks for a list of new instructions."""
        return self.prompt("self_instruct")

    def judge_prompt(self, instruction: str) -> str:
        """The question whether `instruction` suits a long text."""
        return self._filled("judge", instruction=instruction)

    def extend_prompt(self, instruction: str, draft: str) -> str:
        """The request to rewrite `draft`, an answer to `instruction`, as a longer one."""
        return self._filled("extend", instruction=instruction, draft=draft)

    def _filled(self, name: str, **values: str) -> str:
        template = self.prompt(name)
        for slot in values:
            if f"{{{slot}}}" not in template:
                raise UserError(f"{self.prompts / name}.md: add {{{slot}}} where it belongs")
        # One pass over the template: braces inside a user's instruction are never slots.
        return re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], slot[0]), template)


@cache
def _read_prompt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this prompt ({error})") from error


@cache
def family_names() -> tuple[str, ...]:
    """The names of all families, in alphabetical order."""
    return tuple(sorted(config.parent.name for config in REPO_ROOT.glob("[!.]*/config.py")))


@cache
def load_family(name: str) -> ModelFamily:
    """The family of the folder `name`. Raises UserError for a name that is no family."""
    if name not in family_names():
        known = ", ".join(family_names())
        raise UserError(f"unknown model family {name!r}: give one of {known}")
    return importlib.import_module(f"{name}.config").FAMILY


def infer_family(model_type: str) -> ModelFamily | None:
    """The family that lists `model_type` (of a model's config.json), None when none does."""
    families = map(load_family, family_names())
    return next((family for family in families if model_type in family.model_types), None)
