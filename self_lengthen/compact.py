"""Collections for a million texts: a few bytes of memory for each, whatever its length."""

import hashlib
import tempfile
from array import array
from collections.abc import Sequence

import numpy as np

FIRST_SLOTS = 1024  # a power of two; doubled when half of them are in use
FREE = 0


class Digests:
    """A set of texts by 64 bits of their hash: 16 to 32 bytes each.

    A new text is taken for an old one with a chance of about n / 2**64: for a million texts, one in
    ten million million.
    """

    def __init__(self) -> None:
        self._slots = np.zeros(FIRST_SLOTS, np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        return self._slots[self._slot(_digest(text))] != FREE

    def add(self, text: str) -> None:
        digest = _digest(text)
        slot = self._slot(digest)
        if self._slots[slot] != FREE:
            return
        self._slots[slot] = digest
        self._count += 1
        if 2 * self._count > self._slots.size:
            self._grow()

    def _slot(self, digest: int) -> int:
        """Where the digest is, or the free slot where it belongs."""
        last = self._slots.size - 1
        slot = digest & last
        while self._slots[slot] not in (FREE, digest):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        old = self._slots[self._slots != FREE]
        self._slots = np.zeros(2 * self._slots.size, np.uint64)
        for digest in old:
            self._slots[self._slot(int(digest))] = digest


def _digest(text: str) -> int:
    """64 bits, never FREE."""
    wide = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(wide, "little") or 1


class Texts(Sequence[str]):
    """A list of texts that only grows: 8 bytes of memory each, the rest in a temporary file."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as we do
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, end = self._ends[number], self._ends[number + 1]
        self._file.seek(start)
        return self._file.read(end - start).decode("utf-8", "surrogatepass")

    def append(self, text: str) -> None:
        self._file.seek(self._ends[-1])
        self._ends.append(self._ends[-1] + self._file.write(text.encode("utf-8", "surrogatepass")))
