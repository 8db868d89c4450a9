"""Command lines that answer a mistake with one line and exit status 2."""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import NoReturn

from self_lengthen.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse without guessing of abbreviations; a mistake raises UserError."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def command_line(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What a person would type to run `command` with `env` added."""
    added = "".join(f"{name}={shlex.quote(value)} " for name, value in sorted(env.items()))
    return added + shlex.join(command)


def at_least(smallest: float, kind: type = int):
    """An argparse type: a number that is not below `smallest`."""

    def number(text: str):
        value = kind(text)
        if not value >= smallest:  # nan is neither
            raise argparse.ArgumentTypeError(f"{text} is below {smallest}")
        return value

    number.__name__ = kind.__name__  # argparse names it when the text is no number
    return number


def positive(text: str) -> float:
    """An argparse type: more than 0, and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def warmup_share(text: str) -> float:
    """An argparse type: at least 0, below 1; from 1 on the trainer would read it as steps."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def share(text: str) -> float:
    """An argparse type: more than 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value
