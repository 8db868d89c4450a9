"""SIGKILL to the real parts of a run: the server's go on by themselves, run.sh by the same command.

Promises 1, 3, 5 and 8 on the bundled model: controller, API server, worker, step, trainer, run.sh.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from self_lengthen.files import read_json, read_rows
from self_lengthen.training.launch import TrainingJob, steps_made
from self_lengthen.training.trainer import TRAINER
from tests.real import Script, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.real]

OPTIONS = ("--demo", "--instruct_count=20", "--max_iter=1", "--finish_ratio=1", "--concurrency=8")
TIMEOUT_S = 1800


class Run:
    def __init__(self, folder: Path) -> None:
        self.results = folder / "run"
        self.log = folder / "log"
        self.accepted: dict[Path, bytes] = {}
        self.start()

    def start(self) -> None:
        self.script = Script("run.sh", *OPTIONS, f"--results={self.results}", log=self.log)

    def wait(self, happens: Callable[[], object], what: str) -> None:
        def so_or_ended() -> object:
            assert self.script.process.poll() is None, self.script.text()
            return happens()

        wait_for(so_or_ended, TIMEOUT_S, what)

    def wait_for_units(self, step: str, count: int) -> None:
        journal = self.results / f"iter_1/{step}/journal.jsonl"
        self.wait(
            lambda: journal.exists() and journal.read_bytes().count(b"\n") >= count,
            f"{count} units of {step}",
        )

    def kill(self, words: str) -> None:
        """The process with these words on its command line; not its guard."""
        self.note_accepted()
        found = {
            pid: line
            for pid, line in self.script.processes().items()
            if words in line and "guard.py" not in line
        }
        assert found, f"no process with {words}"
        os.kill(min(found), signal.SIGKILL)

    def note_accepted(self) -> None:
        for file in self.results.glob("iter_1/*/journal.jsonl"):
            content = file.read_bytes()
            self.accepted[file] = content[: content.rfind(b"\n") + 1]

    def nothing_lost(self) -> None:
        for file, lines in self.accepted.items():
            assert file.read_bytes().startswith(lines), file


def test_promise_3_controller_api_server_and_worker_are_back_and_the_run_goes_on(tmp_path):
    run = Run(tmp_path)
    run.wait_for_units("instructions", 1)
    run.kill("self_lengthen.serving.controller")
    run.wait_for_units("initial_responses", 1)
    run.kill("self_lengthen.serving.api_server")
    run.wait_for_units("extended_responses", 1)
    run.kill("self_lengthen.serving.worker")
    server_log = run.results / "iter_1/logs/server/server.log"
    run.wait(
        lambda: run.results.joinpath("iter_1/extended_responses/manifest.json").exists(), "step 2"
    )
    for name in ("controller", "api_server", "worker_0"):
        assert f"{name} ended with status 137" in server_log.read_text()
    go_on_through_kills_of_trainer_and_run_sh(run)


def go_on_through_kills_of_trainer_and_run_sh(run: Run) -> None:
    lora = run.results / "iter_1/lora"
    job = TrainingJob("gen_sft", {"output_dir": str(lora / "gen_sft")}, lora / "gen_sft.yaml")
    run.wait(lambda: steps_made(job), "a step of training")
    run.kill(TRAINER)
    run.wait(lambda: "from the last checkpoint, restart 1" in run.script.text(), "its restart")
    run.kill("self_lengthen.run")
    assert run.script.wait(60) == -signal.SIGKILL
    assert run.script.gone(60), run.script.left()
    run.start()
    assert run.script.wait(TIMEOUT_S) == 0, run.script.text()
    assert run.script.gone(), run.script.left()
    run.nothing_lost()
    check_accounting(run.results / "iter_1")


def check_accounting(iteration: Path) -> None:
    for step in ("instructions", "initial_responses", "extended_responses"):
        units = read_json(iteration / step / "summary.json")["units"]
        numbers = [record["unit"] for record in read_rows(iteration / step / "journal.jsonl")]
        assert len(numbers) == len(set(numbers)) == units["in"] - units["failed"] - units["cut"]
        dropped = sum(units["dropped"].values())
        assert units["in"] == units["kept"] + dropped + units["failed"] + units["cut"]
        ids = [row["id"] for row in read_rows(iteration / step / "data.jsonl")]
        assert len(ids) == len(set(ids)) == units["kept"]
    for role in ("gen_sft", "ext_sft"):
        assert read_json(iteration / f"lora/{role}.manifest.json")["steps"] > 0
        assert (iteration / f"lora/{role}/adapter_model.safetensors").stat().st_size > 1000
