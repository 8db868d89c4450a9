"""How a text is measured, cut into blocks and units, and joined again.

Pure functions, strings in and strings out: `count_words`, `split_blocks`, `former_half`,
`keep_prefix`, `join_continuation`, `char_units`, `word_units`. Reads and writes no file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Ideographs, CJK punctuation, full-width forms: each counts as a word, as in the paper's release.
_CHINESE = re.compile("[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]")
_FULL_WIDTH_PUNCTUATION = re.compile(r"(?!\w)[\u3000-\u303f\uff00-\uffef]")
_SHARED_PUNCTUATION = "“”‘’…—·"  # written in Chinese as well as in English

_BLANK_LINES = re.compile(r"\n\s*\n")
FEW_BLOCKS = 2  # paper's release: with no more blocks than these, newlines are tried instead

_CHAR_UNIT = re.compile(r"[\x00-\x7f]+|[^\x00-\x7f]")

_HEADING = re.compile(r"#{1,6} ")
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
_CLOSERS = "\"')]}>”’`*_"  # may stand between a sentence's end and the next sentence
_CLOSING_PUNCTUATION = re.compile(r"[,.;:!?)\]}]+(?:\s|\Z)")


def count_words(text: str) -> int:
    """Chinese characters (punctuation and full-width forms included) plus the other words.

    The other words are what white space separates once every Chinese character is replaced by a
    space, so that "用GPU训练" is 4 words. Source: the paper's release.
    """
    rest, chinese_characters = _CHINESE.subn(" ", text)
    return chinese_characters + len(rest.split())


@dataclass(frozen=True)
class Blocks:
    """A text's blocks, none of them blank, and what stands between them."""

    parts: tuple[str, ...]
    separator: str

    def join(self) -> str:
        return self.separator.join(self.parts)

    def first(self, count: int) -> str:
        """The first `count` blocks as one text."""
        return self.separator.join(self.parts[:count])


def split_blocks(text: str) -> Blocks:
    """Cut at blank lines; at newlines where that gives more than the 2 blocks or fewer."""
    text = text.strip("\n")
    paragraphs = tuple(part for part in _BLANK_LINES.split(text) if part.strip())
    if len(paragraphs) <= FEW_BLOCKS:
        lines = tuple(line for line in text.split("\n") if line.strip())
        if len(lines) > len(paragraphs):
            return Blocks(lines, "\n")
    return Blocks(paragraphs, "\n\n")


def former_half(text: str) -> str:
    """The first floor(n / 2) of the n blocks; "" for one block, which has no half to expand."""
    blocks = split_blocks(text)
    return blocks.first(len(blocks.parts) // 2)


def keep_prefix(text: str) -> str:
    """The first floor(2k / 3) of the k blocks: without the last third, where a text rounds off."""
    blocks = split_blocks(text)
    return blocks.first(2 * len(blocks.parts) // 3)


def join_continuation(prefix: str, continuation: str) -> str:
    """`prefix` followed by `continuation`, with no word and no sentence glued to the next.

    Only white space between the two changes: the white space that ends `prefix` goes, and a
    continuation that begins without any gets what the seam needs.
    """
    prefix = prefix.rstrip()
    if not prefix or not continuation or continuation[0].isspace():
        return prefix + continuation
    return prefix + _seam(prefix, continuation) + continuation


def _seam(prefix: str, continuation: str) -> str:
    """The white space between a prefix and a continuation that both touch the seam."""
    if _HEADING.match(prefix.rpartition("\n")[2]):
        return "\n\n"
    if _is_chinese_seam(prefix[-1], continuation[0]) or _CLOSING_PUNCTUATION.match(continuation):
        return ""
    return "\n\n" if prefix.rstrip(_CLOSERS).endswith(_SENTENCE_ENDS) else " "


def _is_chinese_seam(last: str, first: str) -> bool:
    """Whether these two neighbours are set without a space, as Chinese is."""
    if _FULL_WIDTH_PUNCTUATION.match(last) or _FULL_WIDTH_PUNCTUATION.match(first):
        return True
    # “”’… say nothing by themselves: the neighbour decides.
    if _CHINESE.match(first):
        return bool(_CHINESE.match(last)) or last in _SHARED_PUNCTUATION
    return bool(_CHINESE.match(last)) and first in _SHARED_PUNCTUATION


def char_units(text: str) -> Iterator[str]:
    """Each non-ASCII character by itself, runs of ASCII (white space too) as one unit."""
    return iter(_CHAR_UNIT.findall(text))


def word_units(text: str) -> Iterator[str]:
    """What white space separates."""
    return iter(text.split())
