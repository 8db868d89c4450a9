"""Promise 6: memory does not grow with the number of instructions. bench/memory.py goes to 1e6."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen.compact import Digests, Texts

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1200
BYTES_A_UNIT = 150  # numbers and hashes; a record of the journal has about 600


def peak_mib(size: int) -> float:
    command = [sys.executable, str(ROOT / "bench" / "memory.py"), f"--sizes={size}", "--here"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found = json.loads(done.stdout)
    assert found["kept"] == size
    return found["peak_mib"]


@pytest.mark.parametrize("size", [10_000, 30_000])
def test_promise_6_memory_is_flat(size):
    small = peak_mib(1_000)
    assert peak_mib(size) - small < BYTES_A_UNIT * size / 2**20 + 3  # of the allocator


texts = st.lists(st.text(max_size=8), max_size=60)


class TestDigests:
    @given(texts, texts)
    def test_it_has_what_was_added_and_nothing_else(self, added, others):
        digests = Digests()
        for text in added:
            digests.add(text)
        assert all(text in digests for text in added)
        assert [text in digests for text in others] == [text in set(added) for text in others]
        assert len(digests) == len(set(added))

    def test_it_grows(self):
        digests = Digests()
        for number in range(5_000):
            digests.add(str(number))
        assert len(digests) == 5_000
        assert all(str(number) in digests for number in range(5_000))
        assert not any(str(number) in digests for number in range(5_000, 10_000))


class TestTexts:
    @given(texts, texts)
    def test_it_is_the_list(self, first, more):
        stored = Texts(first)
        for text in more:
            stored.append(text)
        assert list(stored) == [*first, *more]
        assert len(stored) == len(first) + len(more)

    def test_what_is_not_there_is_an_error(self):
        with pytest.raises(IndexError):
            Texts(["one"])[1]
