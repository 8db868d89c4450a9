"""Files that are complete when they exist, and journals that survive a kill.

`write_atomic` writes beside the target, syncs and renames. A `Journal` is JSON lines, one finished
unit a line, appended and flushed; a torn last line (the process was killed while writing) is cut
off when the journal is opened again. `Lines` reads rows of a large file by number.
"""

import json
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SYNC_EVERY_S = 2.0  # a kill loses nothing that was flushed; a power cut loses this much at most

Row = dict[str, Any]


def write_atomic(path: Path, text: str) -> None:
    """`path` holds `text`, or is as it was: never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, rows: Iterator[Row]) -> int:
    """Write rows as JSON lines, atomically and without holding them; the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return count


def read_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


class Lines:
    """Random access to the rows of a JSON-lines file; 8 bytes of memory a row."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("rb")
        self._starts = array("q")
        start = 0
        for line in self._file:
            self._starts.append(start)
            start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Row:
        self._file.seek(self._starts[number])
        return json.loads(self._file.readline())

    def close(self) -> None:
        self._file.close()


class Journal:
    """Append-only record of finished units of one step; one writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = path.open("ab")
        self._synced = time.monotonic()

    def append(self, record: Row) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def records(self) -> Iterator[Row]:
        yield from read_rows(self.path)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last newline, and a last line that is no JSON."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or not _is_json(line):
                break
            end += len(line)
        file.truncate(end)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
