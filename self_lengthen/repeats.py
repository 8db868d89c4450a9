"""Which of many texts occurred before, in memory that does not grow with the texts.

    repeats = Repeats(digests)                     # once over all
    kept = [t for t in texts if not repeats.seen(digest(t))]

The first pass notes in a bit map where two digests fall on the same bit; only those few are held
and compared in the second pass, whole. Exact as far as the digests are.
"""

from collections.abc import Iterable

BITS = 2**27  # 16 MiB a map: of a million texts less than one in a hundred falls on another's bit


class Repeats:
    """Built over the digests of all texts, then asked for each of them in order."""

    def __init__(self, digests: Iterable[bytes], bits: int = BITS) -> None:
        self._bits = bits
        once, self._twice = bytearray(bits // 8), bytearray(bits // 8)
        for digest in digests:
            place, bit = self._place(digest)
            if once[place] & bit:
                self._twice[place] |= bit
            else:
                once[place] |= bit
        self._held: set[bytes] = set()

    def seen(self, digest: bytes) -> bool:
        """Whether the same digest was asked for before."""
        place, bit = self._place(digest)
        if not self._twice[place] & bit:
            return False
        if digest in self._held:
            return True
        self._held.add(digest)
        return False

    def _place(self, digest: bytes) -> tuple[int, int]:
        number = int.from_bytes(digest[:8], "little") % self._bits
        return number // 8, 1 << (number % 8)
