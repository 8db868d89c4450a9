"""Rows of a length benchmark, and the answers to them.

LonGen's rows have query, language, range, type, constraint and response; LongBench-Write's have
prompt and length. A file is JSON lines, a JSON list or CSV.

    rows = read_rows(path)          every row, with the number by which a person finds it
    read_answers(path)              the same as `Answer`s: each has a response and a demanded length
    checked(path, rows, answer_of)  the same without the demand

A row that cannot be scored is a UserError that names the file and the row's number: the line in
JSON lines, the place in a list or a table. Standard library only. Writes no file.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from self_lengthen.errors import UserError
from self_lengthen.scoring import Demand, parse_constraint

Row = dict[str, Any]
T = TypeVar("T")

SUFFIXES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class NumberedRow:
    number: int  # from 1
    row: Row


@dataclass(frozen=True)
class Answer:
    """One response, with a `demand` (LonGen), `required_words` (LongBench-Write), both or none."""

    id: str  # of its question; several samples share it
    question: str
    language: str
    range: str  # LonGen's range of lengths, "" where the row has none
    demand: Demand | None
    required_words: int | None  # for S_L: None where the demand is no single number
    response: str
    cut: bool  # by max_tokens, as far as the row tells


def read_rows(path: Path) -> list[NumberedRow]:
    """Raises UserError when the file cannot be read, has no rows, or has one that is no object."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: give a file that ends in {', '.join(SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line ends stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    try:
        rows = list(_csv_rows(text) if path.suffix == ".csv" else _json_rows(path, text))
    except csv.Error as error:
        raise UserError(f"{path}: is not CSV ({error})") from error
    if not rows:
        raise UserError(f"{path}: holds no row")
    return rows


def _csv_rows(text: str) -> Iterator[NumberedRow]:
    """A table cannot tell an empty answer from none: an empty cell is none."""
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long answer
    for number, cells in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
        yield NumberedRow(number, {name: cell or None for name, cell in cells.items() if name})


def _json_rows(path: Path, text: str) -> Iterator[NumberedRow]:
    values = _list(text) if path.suffix == ".json" else None
    if values is None:
        values = _lines(path, text)
    for number, value in values:
        if not isinstance(value, dict):
            raise UserError(f"{path}: row {number} is not an object")
        yield NumberedRow(number, value)


def _list(text: str) -> Iterator[tuple[int, Any]] | None:
    """The items when `text` is one JSON list. Files called .json may hold JSON lines too."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return enumerate(value, 1) if isinstance(value, list) else None


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # an answer may hold U+2028
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: row {number} is not JSON ({error})") from error


def read_answers(path: Path) -> list[Answer]:
    """Raises UserError that names the first row whose length cannot be scored."""
    return checked(path, read_rows(path), measured_answer_of)


def checked(path: Path, rows: list[NumberedRow], convert: Callable[[Row], T]) -> list[T]:
    """`convert` over the rows; its ValueError becomes a UserError with the row's number."""
    converted = []
    for numbered in rows:
        try:
            converted.append(convert(numbered.row))
        except ValueError as error:
            raise UserError(f"{path}: row {numbered.number}: {error}") from error
    return converted


def measured_answer_of(row: Row) -> Answer:
    """An answer that has a demanded length. Raises ValueError, in words for a user."""
    answer = answer_of(row)
    if answer.demand is None and answer.required_words is None:
        raise ValueError("has neither a constraint nor a length")
    return answer


def answer_of(row: Row) -> Answer:
    """Raises ValueError, in words for a user, when a field that the row has cannot be used."""
    question, demand = question_of(row), _demand_of(row)
    response = row.get("response")
    if response is None:
        raise ValueError("has no response; answer the file with eval/generate.py first")
    if not isinstance(response, str):
        raise ValueError(f"its response is not a text but {response!r:.40}")
    return Answer(
        id=str(row.get("id") or question),
        question=question,
        language=language_of(row),
        range=str(row.get("range") or ""),
        demand=demand,
        required_words=_required_words(row, demand),
        response=response,
        cut=row.get("finish_reason") == "length",
    )


def question_of(row: Row) -> str:
    """The user's message: `query`, or `prompt` as LongBench-Write has it. Raises ValueError."""
    question = row.get("query") or row.get("prompt")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("has no text under query or prompt")
    return question


def language_of(row: Row) -> str:
    """The row's `language`; without one, what most letters of its question are: "zh" or "en"."""
    if row.get("language"):
        return str(row["language"])
    letters = [letter for letter in question_of(row) if letter.isalpha()]
    chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
    return "zh" if 4 * chinese > len(letters) else "en"  # a Chinese word is about two characters


def _demand_of(row: Row) -> Demand | None:
    """LonGen's demand; None in a row of LongBench-Write, whose `type` is a kind of text."""
    if row.get("constraint") is None:
        return None
    return parse_constraint(str(row.get("type")), str(row["constraint"]))


def _required_words(row: Row, demand: Demand | None) -> int | None:
    if demand is not None:
        return demand.low if demand.kind == "about" else None
    if row.get("length") is None:
        return None
    try:
        words = int(row["length"])
    except (TypeError, ValueError, OverflowError):
        words = 0
    if words <= 0 or isinstance(row["length"], bool):
        raise ValueError(f"its length is not a number of words above 0 but {row['length']!r:.40}")
    return words
