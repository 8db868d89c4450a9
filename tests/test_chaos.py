"""Promises 1, 5, 7 and 8 under SIGKILL: any process of a run, at seeded random moments.

Steps, journals, nodes and guards are real; server and trainer are stand-ins whose data follow from
the seeds alone (stand_in.py). So the end of a run that was killed again and again can be compared,
byte for byte, with that of a run that nobody disturbed. `bash test.sh chaos` runs all of it, and a
few kills of the real stack (test_chaos_real.py); two kills are in every `bash test.sh`.
"""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from self_lengthen.files import read_json, read_rows
from self_lengthen.ports import free_ports
from tests.real import Script, wait_for

OPTIONS = (
    *("--demo", "--instruct_count=12", "--max_iter=1", "--finish_ratio=1", "--concurrency=4"),
    "--rendezvous_timeout_s=60",  # rank 0 may be killed before it opens
)
RUN_S, STOP_S = 600, 120  # a busy machine
LOST_S = 60  # promise 7
STEPS = ("instructions", "initial_responses", "extended_responses", "filtered", "sft")
KILLS = 4  # of each seed, at most: a run that goes on may need no server any more
KINDS = ("run", "server", "step", "train", "guard")
SEEDS_ALONE, SEEDS_OF_TWO = range(8), range(100, 104)

Snapshot = dict[Path, bytes]


class Run:
    """One run on one or two nodes of loopback."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.results, self.folder, self.nodes = folder / "run", folder, nodes
        self.scripts: list[Script] = []
        self.took_s = 0.0

    def start(self) -> None:
        [port] = free_ports("127.0.0.1", 1)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "tests.stand_in", "run", *OPTIONS]
        line = f'exec "$0" "$@" --results={self.results}'
        self.scripts = [
            Script(
                *("-c", line, *command),
                log=self.folder / f"rank{rank}.log",
                env={"WORLD_SIZE": str(self.nodes), "RANK": str(rank), **meeting},
            )
            for rank in range(self.nodes)
        ]

    def processes(self) -> dict[int, str]:
        return {pid: line for s in self.scripts for pid, line in s.processes().items()}

    def ended(self) -> bool:
        return all(script.process.poll() is not None for script in self.scripts)

    def wait(self, timeout_s: float) -> list[int]:
        return [script.wait(timeout_s) for script in self.scripts]

    def kill_one(self, rng: random.Random, whole_s: float) -> str | None:
        """SIGKILL to a process of a random kind, a random while after the first of them is there.

        `whole_s`: seconds of a whole run. One of another kind where those of this one are gone;
        None where none of this one came before the run ended.
        """
        kind, after_s = rng.choice(KINDS), rng.uniform(0.0, 0.4) * whole_s
        self._look_until(lambda: kind in self.by_kind(), RUN_S)
        self._look_until(lambda: kind not in self.by_kind(), after_s)
        kinds = self.by_kind()
        if not kinds:
            return None
        if kind not in kinds:
            kind = rng.choice(sorted(kinds))
        try:
            os.kill(rng.choice(kinds[kind]), signal.SIGKILL)
        except ProcessLookupError:
            return None
        return kind

    def _look_until(self, happens: Callable[[], bool], timeout_s: float) -> None:
        """Or until the run has ended, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self.ended() and not happens():
            time.sleep(0.02)

    def by_kind(self) -> dict[str, list[int]]:
        kinds: dict[str, list[int]] = {}
        for pid, line in sorted(self.processes().items()):
            kinds.setdefault(kind_of(line), []).append(pid)
        return kinds

    def journals(self) -> Snapshot:
        """What has been accepted: whole lines."""
        files = self.results.glob("iter_*/*/journal.jsonl")
        return {file: whole_lines(file.read_bytes()) for file in files}

    def said(self) -> str:
        return "\n".join(script.text()[-3000:] for script in self.scripts)


def whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def kind_of(line: str) -> str:
    if "guard.py" in line:
        return "guard"
    words = line.split()
    return words[words.index("tests.stand_in") + 1] if "tests.stand_in" in words else "other"


def undisturbed(folder: Path) -> Run:
    run = Run(folder, nodes=1)
    started = time.monotonic()
    run.start()
    assert run.wait(RUN_S) == [0], run.said()
    run.took_s = time.monotonic() - started
    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def disturb(run: Run, seed: int, kills: int, whole_s: float) -> Counter[str]:
    """Kill, see that all ends, start again; so many times. What was killed how often."""
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    accepted: Snapshot = {}
    for _ in range(kills):
        run.start()
        kind = run.kill_one(rng, whole_s)
        killed.update([kind] if kind else [])
        statuses = run.wait(RUN_S if kind is None else RUN_S + STOP_S)
        assert all(script.gone(STOP_S) for script in run.scripts), run.processes()
        assert kind is not None or statuses == [0] * run.nodes, run.said()
        now = run.journals()
        for file, lines in accepted.items():
            assert now[file].startswith(lines), f"{file} lost what was accepted"
        accepted = now
    run.start()
    assert run.wait(RUN_S) == [0] * run.nodes, run.said()
    assert all(script.gone(STOP_S) for script in run.scripts), run.processes()
    for file, lines in accepted.items():
        assert file.read_bytes().startswith(lines), f"{file} lost what was accepted"
    return killed


def check(run: Run, reference: Run) -> None:
    """No accepted sample lost, none doubled, accounting exact; the data of an undisturbed run."""
    for step in STEPS:
        folder = run.results / "iter_1" / step
        units = read_json(folder / "summary.json")["units"]
        parts = [*units["dropped"].values(), units["kept"], units["failed"], units["cut"]]
        assert units["in"] == sum(parts)
        if (folder / "journal.jsonl").exists():
            numbers = [record["unit"] for record in read_rows(folder / "journal.jsonl")]
            assert sorted(numbers) == list(range(units["in"]))
        if (folder / "data.jsonl").exists():
            data = (folder / "data.jsonl").read_bytes()
            assert data == (reference.results / "iter_1" / step / "data.jsonl").read_bytes()
            ids = [json.loads(line)["id"] for line in data.splitlines()]
            assert len(ids) == len(set(ids)) == units["kept"] > 0
    for role in ("gen_sft", "ext_sft"):
        lora = run.results / "iter_1/lora"
        assert (lora / f"{role}.manifest.json").exists()
        assert (lora / role / "adapter_model.safetensors").read_text() == "8 steps"


def report(killed: Counter[str], nodes: int) -> None:
    print(f"\n{nodes} node(s), SIGKILLs: {killed.total()}: {dict(killed)}")


@pytest.mark.real  # its processes are, if not its models; too slow for the fast tests
@pytest.mark.parametrize(("nodes", "seed"), [(1, 1000), (2, 1001)])
def test_promise_1_a_killed_run_ends_as_one_that_nobody_disturbed(tmp_path, reference, nodes, seed):
    run = Run(tmp_path, nodes)
    killed = disturb(run, seed, 1, reference.took_s)
    check(run, reference)
    report(killed, nodes)
    assert killed.total() > 0


@pytest.mark.real
@pytest.mark.parametrize("during", ["server", "step", "train"])
@pytest.mark.parametrize("rank", [0, 1])
def test_promise_7_a_rank_killed_at_any_time_ends_the_other_and_both_can_go_on(
    tmp_path, reference, rank, during
):
    run = Run(tmp_path, nodes=2)
    run.start()
    wait_for(lambda: during in run.by_kind(), RUN_S, f"the first process of kind {during}")
    killed, other = run.scripts[rank], run.scripts[1 - rank]
    killed.process.send_signal(signal.SIGKILL)
    assert other.wait(LOST_S) == 1, run.said()
    assert re.search(rf"^run\.sh: rank {rank} is lost \(", other.text(), re.MULTILINE), run.said()
    assert all(script.gone(STOP_S) for script in run.scripts), run.processes()
    run.start()
    assert run.wait(RUN_S) == [0, 0], run.said()
    check(run, reference)


@pytest.mark.chaos
def test_promise_1_thirty_kills_and_more_lose_nothing(tmp_path, reference):
    total: Counter[str] = Counter()
    for nodes, seeds in ((1, SEEDS_ALONE), (2, SEEDS_OF_TWO)):
        for seed in seeds:
            folder = tmp_path / f"seed-{seed}"
            folder.mkdir()
            run = Run(folder, nodes)
            killed = disturb(run, seed, KILLS, reference.took_s)
            check(run, reference)
            report(killed, nodes)
            total += killed
    print(f"\nall: {total.total()} SIGKILLs: {dict(total)}")
    assert total.total() >= 30
    assert set(KINDS) <= total.keys()
