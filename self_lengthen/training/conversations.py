"""Training conversations from files in the formats that people have them in.

    row = conversation({"query": "Write ...", "response": "Once ..."})

Reads JSON lines, or a JSON list: query/response, alpaca (instruction, input, output, system,
history), sharegpt (conversations of from/value) and messages (role/content). A conversation is
[{"role": ..., "content": ...}, ...]: an optional system prompt, then user and assistant in turn.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from self_lengthen.errors import UserError
from self_lengthen.files import Lines

Conversation = list[dict[str, str]]

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
ROLES |= {"system": "system"}
REMEDY = "each row is query/response, alpaca, conversations (from/value) or messages (role/content)"


def conversation(row: Any) -> Conversation | None:
    """The row's turns, None when it is no plain conversation that ends in an answer."""
    if not isinstance(row, dict):
        return None
    turns = _turns(row)
    if row.get("system"):
        turns = [("system", row["system"]), *turns]
    if not all(isinstance(part, str) for turn in turns for part in turn):
        return None
    named = [(ROLES.get(role), content) for role, content in turns]
    if named and named[0][0] == "system":
        named, system = named[1:], named[:1]
    else:
        system = []
    expected = ["user", "assistant"] * (len(named) // 2)
    filled = all(content.strip() for _, content in named)
    if not named or [role for role, _ in named] != expected or not filled:
        return None
    return [{"role": str(role), "content": content} for role, content in [*system, *named]]


def _turns(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    if "response" in row:
        return [("user", row.get("query")), ("assistant", row["response"])]
    if "output" in row:
        asked = "\n".join(filter(None, (row.get("instruction"), row.get("input"))))
        before = [
            turn
            for question, answer in row.get("history") or []
            for turn in (("user", question), ("assistant", answer))
        ]
        return [*before, ("user", asked), ("assistant", row["output"])]
    for name, role, content in (
        ("messages", "role", "content"),
        ("conversations", "from", "value"),
        ("conversations", "role", "content"),
    ):
        parts = row.get(name)
        if isinstance(parts, list) and all(isinstance(p, dict) and role in p for p in parts):
            return [(part[role], part.get(content)) for part in parts]
    return []


class Rows:
    """The rows of a file by number: JSON lines, read when asked for, or a JSON list, held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open(encoding="utf-8") as file:
                is_list = file.read(1) == "["
                file.seek(0)
                self._rows: Sequence[Any] | Lines = json.load(file) if is_list else Lines(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read as JSON lines or a JSON list ({error})"
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Conversation | None:
        return conversation(self.raw(number))

    def raw(self, number: int) -> Any:
        """The row as it stands in the file. Raises UserError that names a line that is no JSON."""
        try:
            return self._rows[number]
        except ValueError as error:
            raise UserError(f"{self.path}:{number + 1}: is not JSON ({error})") from error

    def all(self) -> Iterator[Conversation]:
        """Raises UserError for the first row that is none."""
        for number in range(len(self)):
            found = self[number]
            if found is None:
                raise UserError(f"{self.path}:{number + 1}: is no conversation; {REMEDY}")
            yield found


def sample(
    files: Sequence[Rows], count: int, rng: random.Random, lost: Counter[str]
) -> Iterator[Conversation]:
    """`count` conversations of all files together, or all where there are fewer.

    `lost`: how many rows of each file were no plain conversation; they are passed over.
    """
    starts = [sum(map(len, files[:place])) for place in range(len(files))]
    order = list(range(sum(map(len, files))))
    rng.shuffle(order)
    given = 0
    for number in order:
        if given == count:
            return
        place = max(n for n, start in enumerate(starts) if start <= number and len(files[n]))
        found = files[place][number - starts[place]]
        if found is None:
            lost[str(files[place].path)] += 1
            continue
        given += 1
        yield found
