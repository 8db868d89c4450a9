"""Faults that come from outside: a full disk, a late one, a second run, a template that refuses."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeServer, Turn, prose
from jinja2 import TemplateError

from self_lengthen import errors, files
from self_lengthen.errors import RunError, UserError, main_exit
from self_lengthen.files import Journal, read_rows, wait_for_file, write_json, write_rows
from self_lengthen.options import REPO_ROOT
from self_lengthen.runfolder import INITIAL, INSTRUCTIONS

LIMIT_S = 60


class TestDiskFull:
    """A limit on the size of files stands in for a full disk: write() fails the same way."""

    FULL = "the disk does not take what is written ({file}): File too large; make room, then the "

    def step(self, folder, url: str, most_bytes: int | None) -> subprocess.CompletedProcess:
        script = REPO_ROOT / "llama" / "step1_gen_initial_responses.py"
        command = [sys.executable, str(script), f"--results={folder.path}", "--iteration=1"]
        command += [f"--base_url={url}", "--concurrency=4"]

        def limit() -> None:
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        options = {"capture_output": True, "text": True, "timeout": LIMIT_S, "preexec_fn": limit}
        return subprocess.run(command, **options)

    def test_it_is_one_line_and_the_same_command_continues_with_nothing_lost(self, new_run, llama):
        folder = new_run(llama)
        rows = [{"id": f"q{n}", "instruction": f"Write {n}."} for n in range(20)]
        folder.step(1, INSTRUCTIONS).finish(iter(rows), {"units": {"in": 20, "kept": 20}})
        journal = folder.step(1, INITIAL).path / "journal.jsonl"
        texts = lambda request: Turn(text=prose(40, request.body["seed"] % 1000))  # noqa: E731
        with FakeServer(texts) as server:
            full = self.step(folder, server.url, 4000)
            last = full.stderr.splitlines()[-1]
            said = f"step1_gen_initial_responses.py: {self.FULL.format(file=journal)}"
            assert (full.returncode, last) == (1, said + "same command continues")
            assert "Traceback" not in full.stderr
            accepted = list(read_rows(journal))  # whole lines, no torn one among them
            assert 0 < len(accepted) < 40
            again = self.step(folder, server.url, None)
            assert again.returncode == 0, again.stderr
        records = list(read_rows(journal))
        assert records[: len(accepted)] == accepted
        assert sorted(record["unit"] for record in records) == list(range(40))

    def test_a_journal_keeps_no_torn_line_and_takes_no_other_after_it(self, tmp_path, monkeypatch):
        journal = Journal(tmp_path / "journal.jsonl")
        journal.append({"unit": 0})
        real = journal._file

        def half(line: bytes) -> int:
            if line.startswith(b"{"):
                return real.write(line[: len(line) // 2])
            raise OSError(28, "No space left on device")

        journal._file = SimpleNamespace(write=half, truncate=real.truncate)
        for unit in (1, 2):
            with pytest.raises(OSError, match="No space left on device"):
                journal.append({"unit": unit})
        journal._file = real
        journal.close()
        assert list(read_rows(tmp_path / "journal.jsonl")) == [{"unit": 0}]

    def test_a_file_that_could_not_be_written_leaves_no_half_and_the_old_one(self, tmp_path):
        file = tmp_path / "data.jsonl"
        write_json(file, {"old": 1})

        def rows():
            yield {"new": 1}
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError) as failure:
            write_rows(file, rows())
        assert failure.value.filename == str(file)
        assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
        assert json.loads(file.read_text()) == {"old": 1}

    @pytest.mark.parametrize("number", errors.DISK_ERRORS)
    def test_every_fault_of_a_disk_is_one_line(self, capsys, number):
        def main() -> None:
            raise OSError(number, "?", "/results/run.json")

        with pytest.raises(SystemExit) as left:
            main_exit("run.sh", main)
        err = capsys.readouterr().err
        assert left.value.code == 1
        assert err.startswith("run.sh: the disk does not take what is written (/results/run.json)")
        assert os.strerror(number) in err and err.count("\n") == 1

    def test_another_fault_of_the_system_is_not_hidden(self):
        def main() -> None:
            raise ConnectionRefusedError("a mistake of ours")

        with pytest.raises(ConnectionRefusedError):
            main_exit("run.sh", main)


class TestUnreadOutput:
    """What `... | head` leaves."""

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize("lines", [2, 10**5])
    def test_it_ends_without_a_word(self, unbuffered, lines):
        program = (
            f"main_exit('it', lambda: [print(n, 'x' * 99) or wait(n) for n in range({lines})])"
        )
        # The second line is printed when nobody reads any more.
        wait = "wait = lambda n: n or (sys.stdout.flush(), sys.stdin.read())"
        code = f"import sys; from self_lengthen.errors import main_exit; {wait}; {program}"
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        with subprocess.Popen(
            [sys.executable, "-c", code], env=env, cwd=REPO_ROOT, **pipes
        ) as process:
            assert process.stdout.readline().startswith(b"0 x")
            process.stdout.close()
            process.stdin.close()
            assert process.wait(LIMIT_S) == 141
            assert process.stderr.read() == b""

    def test_another_broken_pipe_is_not_hidden(self, capfd):
        def main() -> None:
            raise BrokenPipeError("a mistake of ours")

        with pytest.raises(BrokenPipeError):
            main_exit("run.sh", main)


class TestLateSharedDisk:
    def test_a_file_that_shows_up_late_is_waited_for(self, tmp_path):
        file = tmp_path / "new" / "gen_sft.yaml"

        def appear() -> None:
            file.parent.mkdir()
            file.touch()

        timer = threading.Timer(0.5, appear)
        timer.start()
        started = time.monotonic()
        assert wait_for_file(file, "rank 0", timeout_s=LIMIT_S) == file
        assert time.monotonic() - started >= 0.4
        timer.join()

    def test_one_that_never_does_is_named(self, tmp_path):
        with pytest.raises(RunError) as failure:
            wait_for_file(tmp_path / "file", "rank 0", timeout_s=0.3)
        assert str(failure.value) == (
            f"{tmp_path}/file does not show up here within 0 s, though rank 0 has written it: is "
            "it on a disk that every node sees?"
        )


class TestTwoAtOnce:
    def test_a_journal_has_one_writer(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "WRITER_GONE_S", 0.2)
        path = tmp_path / "journal.jsonl"
        first = Journal(path)
        with pytest.raises(RunError, match="another process still writes it"):
            Journal(path)
        first.close()
        Journal(path).close()

    def test_a_writer_that_is_about_to_end_is_waited_for(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        first = Journal(path)
        timer = threading.Timer(0.5, first.close)
        timer.start()
        started = time.monotonic()
        Journal(path).close()
        assert time.monotonic() - started >= 0.4
        timer.join()

    def test_a_second_run_in_the_same_folder_is_refused(self, tmp_path):
        from self_lengthen.claim import claim_folder

        plan = SimpleNamespace(results=tmp_path / "run", fresh=False, options={"seed": 1}, gpus=[])
        fresh = SimpleNamespace(**{**vars(plan), "fresh": True})
        with claim_folder(plan):
            for second in (plan, fresh):
                with pytest.raises(UserError) as refusal, claim_folder(second):
                    pass
                assert str(refusal.value) == (
                    f"--results={tmp_path}/run: another command is at work there; wait for it, "
                    "stop it, or give another folder"
                )
        with claim_folder(plan):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [TemplateError("roles must alternate"), ValueError("top_k")])
def test_what_template_or_engine_refuse_is_the_requests_fault(error):
    """The API server answers 400 to this code (test_api_server.py), so that nobody retries it."""
    pytest.importorskip("vllm")
    from fastchat.constants import ErrorCode

    from self_lengthen.serving import worker

    async def generate(params: dict) -> dict:
        raise error

    stand_in = SimpleNamespace(running=0, generate=generate)
    app = worker.make_app(stand_in)
    import httpx

    async def ask() -> dict:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.post("/worker_generate", json={"prompt": "?"})).json()

    assert asyncio.run(ask()) == {"text": str(error), "error_code": ErrorCode.PARAM_OUT_OF_RANGE}


def test_promise_1_a_torn_journal_is_mended_at_every_byte_of_its_last_record(tmp_path):
    """The last record has every kind of character that JSON and UTF-8 have."""
    text = 'quote " backslash \\ newline \n 港口的灯塔 😀 \u2028'
    records = [{"unit": n, "row": {"response": text}} for n in range(3)]
    path = tmp_path / "journal.jsonl"
    whole = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        assert list(journal.records()) == records[:2], cut
        journal.append(records[2])
        journal.close()
        assert path.read_bytes() == whole, cut
    Journal(path).close()
    assert path.read_bytes() == whole  # a whole last line stays


def test_promise_1_garbage_from_a_power_cut_after_the_last_record_is_cut_off(tmp_path):
    path: Path = tmp_path / "journal.jsonl"
    whole = b'{"unit": 0}\n{"unit": 1}\n'
    path.write_bytes(whole + b"\0" * 4096)
    Journal(path).close()
    assert path.read_bytes() == whole
