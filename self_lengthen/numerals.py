"""Numbers as people write them in a demand: 5,000, 3k, 1.5万, 一万五千, two thousand.

    read_number("1.5万") == 15000
    chinese_numeral(2500) == "两千五百"

Pure functions, strings in and numbers out.
"""

import re

DIGIT_VALUES = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
FORMAL = str.maketrans("壹贰叁肆伍陆柒捌玖拾佰仟萬俩", "一二三四五六七八九十百千万两")
SMALL_SCALES = {"十": 10, "百": 100, "千": 1000}
SUFFIXES = {"k": 1000, "w": 10_000, "百": 100, "千": 1000, "万": 10_000}

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES = {word: value for value, word in enumerate(_ONES.split())}
TENS = {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
ENGLISH_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}

# One pattern for each way of writing; a number is the longest that one of them matches.
DIGITS = (
    r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?!\d)(?:\.\d+)?"
    r"(?:\s?(?:万\s?\d千|[百千万]|[kKwW](?![a-zA-Z])))?"
)
CHINESE = r"[零〇一二两俩三四五六七八九十百千万壹贰叁肆伍陆柒捌玖拾佰仟萬]+"
_SMALL = rf"(?:{'|'.join([*ONES, *TENS])})\b"
_SCALE = rf"(?:{'|'.join(ENGLISH_SCALES)})\b"
ENGLISH = (
    rf"(?i:\b(?:{_SMALL}|an?(?=[\s-]+{_SCALE}))"
    rf"(?:[\s-]+(?:{_SCALE}|{_SMALL})|\s+and\s+(?:an?\s+half\b|{_SMALL}(?!\s+{_SCALE})))*)"
)
NUMBER = f"(?>{DIGITS}|{CHINESE}|{ENGLISH})"  # atomic: twenty-five is no 20 to 5


def read_number(text: str) -> int | None:
    """The value of a number that `NUMBER` matches, None when it makes no sense as one."""
    text = text.strip()
    if text[:1].isascii() and text[:1].isdigit():
        return _digits(text)
    if re.fullmatch(CHINESE, text):
        return _chinese(text.translate(FORMAL))
    return _english(re.split(r"[\s-]+", text.casefold()))


def _digits(text: str) -> int:
    text = re.sub(r"[,\s]", "", text)
    if not text[-1].isdigit():
        head, _, thousands = text[:-1].rpartition("万")  # 1万5千
        if head:
            return round(float(head) * 10_000) + int(thousands) * 1000
        return round(float(text[:-1]) * SUFFIXES[text[-1].casefold()])
    return round(float(text))


def _chinese(text: str) -> int | None:
    """一万五千, the short 一万五, and 三〇〇〇; None for 三四 and 三四千, which say a range."""
    if not set(text) & set("十百千万"):
        return None if len(text) == 2 else int("".join(str(DIGIT_VALUES[c]) for c in text))
    ten_thousands, found, rest = text.rpartition("万")
    high = _below_ten_thousand(ten_thousands or "一") if found else 0
    low = _below_ten_thousand(rest) if rest else 0
    if high is None or low is None:
        return None
    if found and len(rest) == 1 and rest in DIGIT_VALUES:
        low *= 1000  # 一万五
    return high * 10_000 + low


def _below_ten_thousand(text: str) -> int | None:
    total, digit, scale = 0, None, 10_000
    for place, character in enumerate(text):
        if character in DIGIT_VALUES:
            if digit:  # two digits in a row: 三四千 is no single number
                return None
            digit = DIGIT_VALUES[character]
        elif character in SMALL_SCALES and SMALL_SCALES[character] < scale:
            scale = SMALL_SCALES[character]
            total += (1 if digit is None else digit) * scale
            digit = None
        else:
            return None
        if digit == 0 and place < len(text) - 1:
            digit, scale = None, min(scale, 1000)  # 一万零五百
    if digit and 100 <= scale < 10_000 and text[-2] in SMALL_SCALES:
        digit *= scale // 10  # 三千五
    return total + (digit or 0)


def _english(words: list[str]) -> int | None:
    total, current, half = 0, 0, False
    for word in words:
        if word in ("a", "an", "and"):
            continue
        if word == "half":
            half = True
        elif word in ENGLISH_SCALES:
            scale = ENGLISH_SCALES[word]
            grown = (current or 1) * scale + (scale // 2 if half else 0)
            total, current = (total, grown) if scale == 100 else (total + grown, 0)
            half = False
        else:
            current += ONES.get(word, TENS.get(word, 0))
    return None if half else total + current


def chinese_numeral(number: int) -> str:
    """两千五百 for 2500. Raises ValueError outside 1 to 99,999,999."""
    if not 0 < number < 100_000_000:
        raise ValueError(f"{number} is not in 1 to 99,999,999")
    high, low = divmod(number, 10_000)
    gap = "零" if high and 0 < low < 1000 else ""
    ten_thousands = "两" if high == 2 else _group(high)
    return (f"{ten_thousands}万" if high else "") + gap + _group(low)


def _group(number: int) -> str:
    """A number below 10,000, "" for 0; 两千 and 十五 rather than 二千 and 一十五."""
    written, pending = "", False
    for character, scale in (("千", 1000), ("百", 100), ("十", 10), ("", 1)):
        digit, number = divmod(number, scale)
        if digit == 0:
            pending = bool(written)
            continue
        name = "两" if digit == 2 and character == "千" else "零一二三四五六七八九"[digit]
        name = "" if digit == 1 and character == "十" and not written else name
        written += ("零" if pending else "") + name + character
        pending = False
    return written
