"""Command lines that answer a mistake with one line and exit status 2."""

import argparse
from typing import NoReturn

from self_lengthen.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse without guessing of abbreviations; a mistake raises UserError."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def at_least(smallest: float, kind: type = int):
    """An argparse type: a number that is not below `smallest`."""

    def number(text: str):
        value = kind(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{text} is below {smallest}")
        return value

    number.__name__ = kind.__name__  # argparse names it when the text is no number
    return number


def share(text: str) -> float:
    """An argparse type: more than 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value
