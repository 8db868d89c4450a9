"""Held-out demands of length: `python -m demo.length_benchmark llama --out=FILE`.

LonGen's grid at the demo's scale of words: three ranges, four types of demand, the same number of
questions each, about topics of the synthetic world. A question that --not_in has is drawn again.
"""

import argparse
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from demo.documents import ROUND_TO_WORDS, WORLDS, demand
from self_lengthen.constraints import TYPES
from self_lengthen.family import family_names, load_family
from self_lengthen.files import Row, read_rows, write_rows

EDGES = (100, 200, 300, 400)  # words
SEED = 20261126


def questions(family_name: str, each: int, known: set[str]) -> Iterator[Row]:
    """`each` rows a type and range: LonGen's columns, the response yet to be written."""
    language = load_family(family_name).language
    world, rng = WORLDS[language], random.Random(SEED)
    for low, high in pairwise(EDGES):
        for kind in TYPES:
            for number in range(1, each + 1):
                words = rng.randrange(low, high, ROUND_TO_WORDS)
                constraint = demand(kind, words, words, words + ROUND_TO_WORDS).say(language)
                instruction = world.topic(rng)[2]
                while instruction in known:
                    instruction = world.topic(rng)[2]
                yield {
                    "id": f"{low}-{high}-{kind}-{number}",
                    "language": language,
                    "range": f"{low}-{high}",
                    "type": kind,
                    "constraint": constraint,
                    "query": world.with_length_demand(instruction, constraint, rng),
                    "response": None,
                    "asked_before": instruction,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=family_names())
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("--each", type=int, default=5, help="questions a type and range (5)")
    parser.add_argument("--not_in", type=Path, help="JSON lines with the queries that are known")
    args = parser.parse_args()
    known = {row["query"] for row in read_rows(args.not_in)} if args.not_in else set()
    write_rows(args.out, questions(args.family, args.each, known))


if __name__ == "__main__":
    main()
