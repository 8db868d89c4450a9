"""LongWriter's word count and length score; not `text.count_words`, and never mixed with it.

    length_score(3000, longwriter_words(text))     S_L, 0 to 100

Pure functions, standard library only.
"""

import re

_LONGWRITER_CHARACTER = re.compile("[\u4e00-\u9fff]")
_LONGWRITER_WORD = re.compile(r"\b[a-zA-Z]+\b")


def longwriter_words(text: str) -> int:
    """Chinese characters plus words of Latin letters. Source: LongWriter's evaluation."""
    characters = len(_LONGWRITER_CHARACTER.findall(text))
    return characters + len(_LONGWRITER_WORD.findall(text))


def length_score(required: float, actual: float) -> float:
    """S_L, 0 to 100: of `actual` words where `required` (above 0) were asked. Source: LongWriter.

    Falls to 0 at four times and at a third of it. Raises ValueError unless required > 0.
    """
    if not required > 0:
        raise ValueError(f"a required length of {required} words cannot be scored")
    if actual > required:
        return 100 * max(0.0, 1 - (actual / required - 1) / 3)
    if actual <= 0:
        return 0.0
    return 100 * max(0.0, 1 - (required / actual - 1) / 2)
