"""Claims about our own prompts on LonGen's grid, `eval/prompts/longen_own.jsonl`."""

import json
import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path

from self_lengthen.benchmark import language_of, read_rows
from self_lengthen.family import family_names, load_family
from self_lengthen.filters import instruction_key
from self_lengthen.scoring import DEMAND_TYPES, parse_constraint

FILE = Path(__file__).resolve().parent.parent / "eval" / "prompts" / "longen_own.jsonl"
ROWS = [numbered.row for numbered in read_rows(FILE)]
RANGES = {"2000-4000": (2000, 4000), "4000-6000": (4000, 6000), "6000-8000": (6000, 8000)}
DIGITS = dict(zip("一二两三四五六七八九", (1, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))


def in_digits(text: str) -> str:
    """`text` with its thousands commas gone and its Chinese thousands and hundreds as digits."""

    def number(match: re.Match[str]) -> str:
        thousands, hundreds = match.groups()
        return str(1000 * DIGITS[thousands] + 100 * DIGITS.get(hundreds, 0))

    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return re.sub("([一二两三四五六七八九])千(?:([一二三四五六七八九])百)?", number, text)


def test_every_cell_of_the_grid_has_ten_prompts():
    cells = Counter((row["language"], row["range"], row["type"]) for row in ROWS)
    grid = product(("zh", "en"), RANGES, DEMAND_TYPES)
    assert cells == dict.fromkeys(grid, 10)


def test_every_query_contains_its_constraint_and_the_numbers_lie_in_the_range():
    for row in ROWS:
        assert row["constraint"] in in_digits(row["query"]), row["id"]
        demand = parse_constraint(row["type"], row["constraint"])
        low, high = RANGES[row["range"]]
        assert low <= demand.low <= demand.high <= high, row["id"]


def test_no_query_states_a_second_length():
    for row in ROWS:
        stated = parse_constraint(row["type"], row["constraint"])
        lengths = re.findall(r"\d+(?=字| words)", in_digits(row["query"]))
        assert {int(length) for length in lengths} <= {stated.low, stated.high}, row["id"]


def test_numbers_are_written_in_several_ways():
    queries = {
        language: [row["query"] for row in ROWS if row["language"] == language]
        for language in ("zh", "en")
    }
    numerals = sum(
        bool(re.search("[一二两三四五六七八九]千.*字", query)) for query in queries["zh"]
    )
    commas = sum(bool(re.search(r"\d,\d{3}", query)) for query in queries["en"])
    assert 40 <= numerals <= 80 and 40 <= commas <= 80


def test_the_constraint_stands_in_different_places():
    places = Counter()
    for row in ROWS:
        query = in_digits(row["query"])
        places[3 * query.index(row["constraint"]) // len(query)] += 1
    assert min(places[third] for third in range(3)) >= 20


def test_every_query_is_in_its_language():
    assert [
        row["id"] for row in ROWS if language_of({"query": row["query"]}) != row["language"]
    ] == []


def test_no_prompt_is_like_another_one_or_like_a_seed():
    seeds = [
        json.loads(line)["prompt"]
        for name in family_names()
        for line in load_family(name).seeds.read_text(encoding="utf-8").splitlines()
    ]
    queries = [row["query"] for row in ROWS]
    assert len({instruction_key(query) for query in queries}) == len(queries)
    pieces = [{text[at : at + 4] for at in range(len(text) - 3)} for text in queries + seeds]
    for one, other in combinations(pieces, 2):
        assert len(one & other) < 0.4 * min(len(one), len(other)), (one, other)


def test_every_kind_of_writing_is_asked_in_every_range_and_language():
    seeds = load_family(family_names()[0]).seeds.read_text(encoding="utf-8").splitlines()
    kinds = {json.loads(line)["kind"] for line in seeds}
    found = Counter((row["language"], row["range"], row["kind"]) for row in ROWS)
    assert {kind for _, _, kind in found} == kinds
    assert min(found[cell] for cell in product(("zh", "en"), RANGES, kinds)) >= 3


def test_rows_await_their_answers_and_have_ids_of_their_own():
    fields = {"id", "language", "range", "type", "constraint", "kind", "query", "response"}
    assert all(row.keys() == fields and row["response"] is None for row in ROWS)
    assert len({row["id"] for row in ROWS}) == len(ROWS) == 240
