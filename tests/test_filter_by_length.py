"""Claims about the LongWriter-6K filter: which rows state one length and keep to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import hanzi, prose
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen import length_filter
from self_lengthen.errors import UserError
from self_lengthen.family import REPO_ROOT
from self_lengthen.files import read_rows
from self_lengthen.scoring import length_score, longwriter_words


def latin(words: int) -> str:
    """So many words of letters alone."""
    return " ".join(["word"] * words) + "."


def row(query: str, answer: str) -> dict:
    return {
        "messages": [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs the script on rows: what it kept, and what it printed."""

    def filtered(rows: list, *argv: str) -> tuple[list[dict], str]:
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = ["filter_by_length.py", str(source), f"--output={output}", *argv]
        monkeypatch.setattr(sys, "argv", command)
        length_filter.main()
        return list(read_rows(output)), capsys.readouterr().out

    return filtered


@pytest.mark.parametrize(
    ("required", "words", "score"),
    [
        (1000, 1000, 100),
        (1000, 1600, 80),
        (1000, 4000, 0),
        (1000, 9000, 0),
        (1400, 1000, 80),
        (1000, 500, 50),
        (3000, 1000, 0),
        (1000, 0, 0),
    ],
)
def test_the_length_score_is_longwriters(required, words, score):
    assert length_score(required, words) == pytest.approx(score)


def test_words_are_counted_as_longwriter_counts_them():
    assert longwriter_words("用GPU训练，3 epochs, it's good!") == 3 + 4


@given(st.integers(1, 20_000), st.integers(0, 60_000))
def test_eighty_means_within_these_two_ratios(required, words):
    within = words / required <= 1.6 + 1e-9 and words * 1.4 >= required - 1e-9
    assert (length_score(required, words) >= 80 - 1e-7) == within


class TestStrategies:
    ROWS = (
        row("Write 1,000 words on tea.", latin(1000)),
        row("Write 1000 words on tea.", latin(1600)),
        row("Write 1000 words on tea.", latin(1601)),
        row("写一篇一千字的文章", hanzi(900)),
        row("写一篇1000字的文章", hanzi(700)),
        row("Write on tea.", latin(1000)),
        row("Part one: 500 words. Part two: 700 words.", latin(1200)),
        row("Write 1000 words on tea.", "1, 2, 3."),
        {"messages": "none"},
    )

    def test_rows_that_state_one_length_and_keep_to_it_stay_as_they_were(self, run):
        kept, printed = run(self.ROWS)
        assert [row["messages"] for row in kept] == [self.ROWS[n]["messages"] for n in (0, 1, 3)]
        assert kept[1] == {
            **self.ROWS[1],
            "required_words": 1000,
            "words": 1600,
            "length_score": 80.0,
        }
        assert [line.split()[0] for line in printed.splitlines()[:3]] == ["9", "6", "3"]
        assert "not_one_length 2" in printed and "low_score 2" in printed
        assert "empty_answer 1" in printed and "no_conversation 1" in printed

    def test_a_least_score_of_zero_is_the_first_strategy_alone(self, run):
        kept, _ = run(self.ROWS, "--min_score=0")
        assert len(kept) == 5

    def test_the_published_rules_miss_what_their_patterns_miss(self, run):
        kept, _ = run(self.ROWS, "--rules=published")
        # "1,000 words" is read as 000: a required length of 0 is left out
        assert [row["messages"] for row in kept] == [self.ROWS[n]["messages"] for n in (1, 3)]

    @pytest.mark.parametrize(
        ("query", "words", "kept"),
        [
            ("Write 1000-2000 words.", 1500, True),
            ("Write 1000-2000 words.", 3100, True),
            ("Write 1000-2000 words.", 3300, False),
            ("Write at least 1000 words.", 9000, True),
            ("Write at least 1000 words.", 600, False),
            ("Write at most 1000 words.", 20, True),
        ],
    )
    def test_a_range_or_a_limit_is_met_anywhere_within(self, run, query, words, kept):
        assert len(run([row(query, latin(words))])[0]) == kept

    def test_every_format_of_conversations_is_read(self, run):
        query, answer = (
            "Write 300 words.",
            prose(300).replace("w", "").translate(str.maketrans("0123456789", "abcdefghij")),
        )
        rows = [
            {"query": query, "response": answer},
            {"instruction": query, "input": "", "output": answer},
            {
                "conversations": [
                    {"from": "human", "value": query},
                    {"from": "gpt", "value": answer},
                ]
            },
            row(query, answer),
        ]
        kept, _ = run(rows)
        assert [{k: r[k] for k in rows[n]} for n, r in enumerate(kept)] == rows


def test_it_runs_as_a_script_and_mistakes_are_one_line(tmp_path):
    script = [sys.executable, str(REPO_ROOT / "eval/filter_by_length.py")]
    output = tmp_path / "out.jsonl"
    missing = [*script, str(tmp_path / "none.jsonl"), f"--output={output}"]
    done = subprocess.run(missing, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not output.exists()
    assert done.stderr.count("\n") == 1 and "none.jsonl" in done.stderr


def test_the_input_is_not_overwritten(tmp_path, monkeypatch):
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row("a", "b")) + "\n")
    monkeypatch.setattr(sys, "argv", ["filter_by_length.py", str(file), f"--output={file}"])
    with pytest.raises(UserError, match="is the input; give another file"):
        length_filter.main()


def test_a_broken_line_is_named(tmp_path, monkeypatch):
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps(row("a", "b")) + "\n{\n")
    monkeypatch.setattr(sys, "argv", ["filter_by_length.py", str(file), f"--output={output}"])
    with pytest.raises(UserError, match=r"in.jsonl:2: is not JSON"):
        length_filter.main()
    assert not output.exists()


@pytest.mark.parametrize("option", ["--min_score=101", "--rules=mine"])
def test_an_option_out_of_range_is_refused(run, option):
    with pytest.raises(UserError, match=option.split("=")[0]):
        run([], option)
