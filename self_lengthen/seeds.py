"""Seed instructions: JSON lines, one {"prompt": ...} a line."""

import json
from pathlib import Path

from self_lengthen.errors import UserError


def read_seeds(path: Path) -> list[str]:
    """The prompts of the file. Raises UserError that names the first line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the seed file ({error}): give --seeds=FILE"
        ) from error
    seeds = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(seeds) < 2:
        raise UserError(f"{path}: holds {len(seeds)} seed instructions, at least 2 are needed")
    return seeds


def _prompt(path: Path, number: int, line: str) -> str:
    remedy = 'each line is one {"prompt": "..."}'
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: is not JSON ({error}): {remedy}") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{path}:{number}: has no text under "prompt": {remedy}')
    return prompt.strip()
