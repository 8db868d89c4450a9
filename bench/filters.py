"""How fast the checks without a model are, against the obvious way to write them.

    python bench/filters.py [--rows=1000000]

The repetition check over texts of 16k tokens, in Chinese and in English, against a dictionary of
tuples filled window by window; then drop_short over many rows. Prints Markdown; writes nothing.
"""

import random
import resource
import time
from array import array
from collections.abc import Callable
from functools import partial

from self_lengthen.cli import Parser, at_least
from self_lengthen.errors import main_exit
from self_lengthen.family import ModelFamily, NgramRule, load_family
from self_lengthen.filters import drop_short
from self_lengthen.repetition import TextWatch, has_repeat
from self_lengthen.text import char_units, word_units

ZH_CHARACTERS, EN_WORDS = 24_000, 12_000  # of a text of about 16k tokens
CHUNKS = 500  # a text of 16k tokens in pieces of 32, as a worker reads it
TRIES = 20  # the fastest counts: the machine may do something else beside


def zh_text(luck: random.Random) -> str:
    """Chinese that never repeats: characters as skewed as in a real text, a mark now and then."""
    marks = ["，", "。", "、", "\n\n", " GPU "]
    characters = (chr(0x4E00 + int(luck.expovariate(1 / 400)) % 4000) for _ in range(ZH_CHARACTERS))
    return "".join(luck.choice(marks) if luck.random() < 0.1 else c for c in characters)


def en_text(luck: random.Random) -> str:
    """English that never repeats: 10,000 different words, the first of them much more often."""
    words = (f"word{int(luck.expovariate(1 / 800)) % 10_000}" for _ in range(EN_WORDS))
    return " ".join(word + "," if luck.random() < 0.1 else word for word in words)


def obvious(rule: NgramRule, text: str) -> bool:
    units = list({"char": char_units, "word": word_units}[rule.unit](text))
    windows: dict[tuple[str, ...], int] = {}
    for start in range(len(units) - rule.n + 1):
        window = tuple(units[start : start + rule.n])
        windows[window] = windows.get(window, 0) + 1
        if windows[window] > 1:
            return True
    return False


def streamed(rules: tuple[NgramRule, ...], text: str) -> bool:
    watch = TextWatch(rules)
    size = len(text) // CHUNKS
    return any(watch.feed(text[at : at + size]) for at in range(0, len(text), size))


WAYS = {
    "obvious": lambda rules, text: any(obvious(rule, text) for rule in rules),
    "has_repeat": has_repeat,
    f"TextWatch, {CHUNKS} pieces": streamed,
}


def seconds(check: Callable[[], bool], expected: bool) -> float:
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        assert check() is expected
        times.append(time.perf_counter() - started)
    return min(times)


def repetition_table() -> None:
    print("| text | way | MB/s | ms a text | times the obvious |\n|---|---|---:|---:|---:|")
    luck = random.Random(1)
    for name, text in (("qwen", zh_text(luck)), ("llama", en_text(luck))):
        family = load_family(name)
        print_ways(f"{family.language}, unique", family, text, False)
        print_ways(f"{family.language}, repeats", family, text + text[: len(text) // 10], True)


def print_ways(label: str, family: ModelFamily, text: str, repeats: bool) -> None:
    spent = {
        way: seconds(partial(check, family.ngram_rules, text), repeats)
        for way, check in WAYS.items()
    }
    for way, took in spent.items():
        numbers = len(text.encode()) / took / 1e6, 1e3 * took, spent["obvious"] / took
        print(f"| {label} | {way} | {numbers[0]:.1f} | {numbers[1]:.2f} | {numbers[2]:.1f} |")


def drop_short_row(rows: int) -> None:
    luck = random.Random(2)
    lengths = array("q", (int(luck.lognormvariate(8, 0.5)) for _ in range(rows)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    kept = sum(drop_short(lengths, random.Random(3)))
    spent = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\ndrop_short: {rows:,} rows in {spent:.2f} s, {grown:.0f} MiB more, {kept:,} kept")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=at_least(1), default=1_000_000, help="of drop_short")
    args = parser.parse_args()
    repetition_table()
    drop_short_row(args.rows)


if __name__ == "__main__":
    main_exit("bench/filters.py", main)
