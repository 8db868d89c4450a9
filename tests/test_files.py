"""Claims about `self_lengthen.files`: what a kill leaves behind, and reading rows by number."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from self_lengthen.files import (
    Journal,
    Lines,
    read_json,
    read_rows,
    write_atomic,
    write_json,
    write_rows,
)

RECORDS = [
    {"unit": 0, "text": "one"},
    {"unit": 1, "text": "第一行\n第二行"},
    {"unit": 2, "text": "港口的灯塔 “一百年” 😀"},
]


def journal_of(path: Path, records: list[dict]) -> Path:
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    return path


class TestJournal:
    def test_what_was_appended_is_read_again_and_appended_to(self, tmp_path):
        path = journal_of(tmp_path / "deep" / "journal.jsonl", RECORDS[:2])
        journal_of(path, RECORDS[2:])
        assert list(read_rows(path)) == RECORDS

    def test_a_cut_at_any_byte_of_the_last_record_costs_that_record_alone(self, tmp_path):
        whole = journal_of(tmp_path / "whole.jsonl", RECORDS).read_bytes()
        earlier = journal_of(tmp_path / "earlier.jsonl", RECORDS[:2]).read_bytes()
        path = tmp_path / "journal.jsonl"
        for end in range(len(earlier), len(whole)):  # the last cut takes only the newline
            path.write_bytes(whole[:end])
            journal = Journal(path)
            assert list(journal.records()) == RECORDS[:2], end
            journal.append({"unit": 3})
            journal.close()
            assert list(read_rows(path)) == [*RECORDS[:2], {"unit": 3}], end

    def test_a_last_line_that_is_no_json_is_dropped(self, tmp_path):
        path = journal_of(tmp_path / "journal.jsonl", RECORDS)
        with path.open("ab") as file:
            file.write(b"\x00\x00\x00\xff\n")
        journal = Journal(path)
        assert list(journal.records()) == RECORDS
        journal.close()

    def test_records_are_readable_before_the_journal_is_closed(self, tmp_path):
        journal = Journal(tmp_path / "journal.jsonl")
        journal.append(RECORDS[1])
        assert list(journal.records()) == RECORDS[1:2]
        journal.close()

    def test_a_killed_writer_loses_nothing_that_it_had_reported(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        writer = start_child(
            f"""
            journal, unit = files.Journal(Path({str(path)!r})), 0
            while True:
                journal.append({{"unit": unit, "text": "灯" * 5000}})
                unit += 1
                print(unit, flush=True)
            """
        )
        for _ in range(40):
            reported = int(writer.stdout.readline())
        kill(writer)
        journal = Journal(path)
        units = [record["unit"] for record in journal.records()]
        journal.close()
        assert len(units) >= reported
        assert units == list(range(len(units)))


class TestWriteAtomic:
    def test_a_failed_write_leaves_the_old_text(self, tmp_path, monkeypatch):
        path = tmp_path / "file.txt"
        write_atomic(path, "old")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, "new" * 10_000)
        assert path.read_text() == "old"

    def test_the_text_is_on_the_disk_before_the_file_has_its_name(self, tmp_path, monkeypatch):
        path, there = tmp_path / "file.txt", []
        monkeypatch.setattr(os, "fsync", lambda _: there.append(path.exists()))
        write_atomic(path, "text")
        path.unlink()
        write_rows(path, iter(RECORDS))
        assert there == [False, False]
        assert path.exists()

    def test_a_failed_write_leaves_no_file_where_there_was_none(self, tmp_path):
        path = tmp_path / "file.txt"
        with pytest.raises(UnicodeEncodeError):
            write_atomic(path, "half" * 10_000 + "\ud800")
        assert not path.exists()

    def test_rows_that_fail_in_the_middle_leave_the_old_rows(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        assert write_rows(path, iter(RECORDS)) == 3

        def rows():
            yield {"new": 1}
            raise ValueError("no second row")

        with pytest.raises(ValueError, match="no second row"):
            write_rows(path, rows())
        assert list(read_rows(path)) == RECORDS

    def test_a_reader_never_sees_half(self, tmp_path):
        path, sizes, stop = tmp_path / "file.json", set(), threading.Event()
        write_json(path, [0] * 50_000)

        def read() -> None:
            while not stop.is_set():
                sizes.add(len(read_json(path)))  # half a list is no JSON

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(20):
            write_json(path, [number] * (50_000 if number % 2 else 70_000))
        stop.set()
        reader.join()
        assert sizes <= {50_000, 70_000}
        assert sizes

    @pytest.mark.parametrize("seed", [1, 2])
    def test_a_killed_writer_leaves_a_whole_file(self, tmp_path, seed):
        path = tmp_path / "file.json"
        writer = start_child(
            f"""
            number = 0
            while True:
                number += 1
                files.write_json(Path({str(path)!r}), [number] * 100_000)
                print(number, flush=True)
            """
        )
        for _ in range(random.Random(seed).randrange(1, 9)):
            reported = int(writer.stdout.readline())
        kill(writer)
        numbers = read_json(path)
        assert numbers == [numbers[0]] * 100_000
        assert numbers[0] >= reported

    def test_the_text_is_utf_8_and_readable_as_it_is(self, tmp_path):
        path = tmp_path / "new" / "file.json"
        write_json(path, {"text": "灯塔"})
        assert "灯塔" in path.read_bytes().decode("utf-8")
        assert read_json(path) == {"text": "灯塔"}
        assert [file.name for file in path.parent.iterdir()] == ["file.json"]


class TestLines:
    def test_rows_are_read_by_number_in_any_order(self, tmp_path):
        rng = random.Random(5)
        alphabet = "港口的灯塔😀é\n\r\u2028\x85 abc"
        rows = [{"n": n, "text": "".join(rng.choices(alphabet, k=n % 40))} for n in range(200)]
        path = tmp_path / "rows.jsonl"
        assert write_rows(path, iter(rows)) == 200
        lines = Lines(path)
        assert len(lines) == 200
        order = rng.sample(range(200), 200)
        assert [lines[number] for number in order] == [rows[number] for number in order]
        assert lines[-1] == rows[-1]
        lines.close()
        assert list(read_rows(path)) == rows

    def test_a_number_beyond_the_last_row_is_an_error(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        write_rows(path, iter(RECORDS))
        with pytest.raises(IndexError):
            Lines(path)[3]

    def test_an_empty_file_has_no_rows(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        assert write_rows(path, iter([])) == 0
        assert len(Lines(path)) == 0


def start_child(code: str) -> subprocess.Popen:
    """A Python process that runs `code` with self_lengthen.files at hand."""
    head = "from pathlib import Path\nfrom self_lengthen import files\n"
    lines = code.strip("\n").split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    body = "\n".join(line[indent:] for line in lines)
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", head + body], cwd=root, stdout=subprocess.PIPE, text=True
    )


def kill(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


def test_json_lines_hold_one_row_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, iter(RECORDS))
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == RECORDS
