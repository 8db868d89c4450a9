"""Claims about `self_lengthen.seeds`: what a seed file gives, and which line is wrong."""

import json
from pathlib import Path

import pytest

from self_lengthen.errors import UserError
from self_lengthen.family import family_names, load_family
from self_lengthen.filters import instruction_key
from self_lengthen.seeds import read_seeds

GOOD = ['{"prompt": "Write a long story."}', '{"prompt": "写一篇长文。", "kind": "essay"}']


def seed_file(folder: Path, lines: list[str]) -> Path:
    path = folder / "seeds.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return path


def test_prompts_are_read_in_order_without_white_space_around_them(tmp_path):
    path = seed_file(tmp_path, [*GOOD, '{"prompt": " A third\\nof two lines. "}', ""])
    assert read_seeds(path) == ["Write a long story.", "写一篇长文。", "A third\nof two lines."]


def test_blank_lines_and_windows_line_ends_are_no_mistake(tmp_path):
    path = seed_file(tmp_path, [GOOD[0] + "\r", "", "  \r", GOOD[1] + "\r", ""])
    assert read_seeds(path) == ["Write a long story.", "写一篇长文。"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_inside_a_prompt_does_not_end_the_line(tmp_path, separator):
    # JSON allows these raw in a string, and texts from the web hold them.
    odd = f'{{"prompt": "Write{separator}a story."}}'
    assert read_seeds(seed_file(tmp_path, [odd, *GOOD]))[0] == f"Write{separator}a story."
    with pytest.raises(UserError, match=r"seeds\.jsonl:2: is not JSON"):
        read_seeds(seed_file(tmp_path, [odd, "broken"]))


def test_a_prompt_that_stands_twice_is_one_seed(tmp_path):
    assert len(read_seeds(seed_file(tmp_path, [*GOOD, GOOD[0]]))) == 2
    with pytest.raises(UserError, match="1 different seed"):
        read_seeds(seed_file(tmp_path, [GOOD[0], GOOD[0]]))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": "cut', "is not JSON"),
        ("just text", "is not JSON"),
        ('{"text": "no prompt"}', 'no text under "prompt"'),
        ('{"prompt": ""}', 'no text under "prompt"'),
        ('{"prompt": " \\n"}', 'no text under "prompt"'),
        ('{"prompt": ["a", "b"]}', 'no text under "prompt"'),
        ('["Write."]', 'no text under "prompt"'),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_broken_line_is_named_with_its_number(tmp_path, line, fault, number):
    lines = [GOOD[0], "", GOOD[1]]  # the blank line counts
    lines.insert(number - 1, line)
    with pytest.raises(UserError) as error:
        read_seeds(seed_file(tmp_path, lines))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'seeds.jsonl'}:{number}: ")
    assert fault in message
    assert '{"prompt": "..."}' in message  # the remedy
    assert "\n" not in message


@pytest.mark.parametrize("lines", [[], GOOD[:1]])
def test_fewer_than_two_seeds_are_refused(tmp_path, lines):
    with pytest.raises(UserError, match=f"holds {len(lines)} different seed.*at least 2"):
        read_seeds(seed_file(tmp_path, lines))


def test_a_file_that_cannot_be_read_is_named_with_the_option(tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl.*--seeds"):
        read_seeds(tmp_path / "missing.jsonl")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl.*--seeds"):
        read_seeds(path)


@pytest.mark.parametrize("name", family_names())
def test_each_family_has_enough_different_seeds(name):
    path = load_family(name).seeds
    seeds = read_seeds(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({instruction_key(seed) for seed in seeds}) == len(seeds) == len(rows) > 20
