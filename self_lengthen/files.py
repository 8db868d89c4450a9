"""Files that are complete when they exist, and journals that survive a kill.

`write_atomic` writes beside the target, syncs and renames. A `Journal` is JSON lines, one finished
unit a line, appended and flushed; a torn last line (the process was killed while writing) is cut
off when the journal is opened again. `Lines` reads rows of a large file by number.
"""

import fcntl
import json
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from self_lengthen.errors import RunError

SHARED_DISK_S = 90.0  # NFS may hide a new file for a minute (acdirmax)
WRITER_GONE_S = 30.0  # for the writer before us to end, when its run was killed
SYNC_EVERY_S = 2.0  # a kill loses nothing that was flushed; a power cut loses this much at most

Row = dict[str, Any]


def write_atomic(path: Path, text: str) -> None:
    """`path` holds `text`, or is as it was: never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as file:
        file.write(text)


@contextmanager
def _beside(path: Path) -> Iterator[IO[str]]:
    """A file that becomes `path` when all is written and synced; else nothing is left of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def wait_for_file(path: Path, said_by: str, timeout_s: float = SHARED_DISK_S) -> Path:
    """`path` once it is there: on a shared disk, what another node wrote may show up late.

    Raises RunError at the deadline.
    """
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise RunError(
                f"{path} does not show up here within {timeout_s:.0f} s, though {said_by} has "
                "written it: is it on a disk that every node sees?"
            )
        time.sleep(0.2)
        with suppress(OSError):
            next(path.parent.iterdir(), None)  # to list the folder makes NFS look again
    return path


def write_rows(path: Path, rows: Iterator[Row]) -> int:
    """Write rows as JSON lines, atomically and without holding them; the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with _beside(path) as file:
        for row in rows:
            count += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def read_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def lock_or_wait(file: IO[bytes], timeout_s: float) -> bool:
    """Whether we have the file for ourselves, until it is closed or we die; at the latest then."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        except OSError:
            return True  # this file system has no locks
        time.sleep(0.1)


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
        self._file = path.open("ab", buffering=0)  # a line is with the system when it is appended
        if not lock_or_wait(self._file, WRITER_GONE_S):
            self._file.close()
            raise RunError(f"{path}: another process still writes it; stop that one first")
        _cut_torn_line(path)
        self._end = path.stat().st_size
        self._full: OSError | None = None
        self._synced = time.monotonic()

    def append(self, record: Row) -> None:
        """Raises OSError when the disk does not take the line; then nothing of it stays, nor can
        another follow it."""
        if self._full is not None:
            raise self._full
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            written = 0
            while written < len(line):  # a disk that is almost full takes a part
                written += self._file.write(line[written:])
        except OSError as error:
            error.filename, self._full = str(self.path), error
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(line)
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def records(self) -> Iterator[Row]:
        yield from read_rows(self.path)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last newline, and a last line that is no JSON."""
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
