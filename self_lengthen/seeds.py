"""Seed instructions: JSON lines, one {"prompt": ...} a line."""

import json
from pathlib import Path

from self_lengthen.errors import UserError


def read_seeds(path: Path) -> list[str]:
    """The prompts of the file, each once. Raises UserError that names the first wrong line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a prompt may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the seed file ({error}): give --seeds=FILE"
        ) from error
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    seeds = list(dict.fromkeys(prompts))
    if len(seeds) < 2:
        raise UserError(
            f"{path}: holds {len(seeds)} different seed instructions, at least 2 are needed"
        )
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
