"""Two nodes with addresses of their own and the real stack: a worker on each, both ranks training.

Promise 7. The nodes are network namespaces; where the machine forbids them, loopback (it is said).
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from self_lengthen.files import read_json, read_rows
from tests.nodes import Nodes, two_nodes
from tests.real import Script, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.real]  # long: eight minutes and more

INSTRUCTIONS = 8
OPTIONS = (f"--instruct_count={INSTRUCTIONS}", "--max_iter=1", "--epochs=2", "--finish_ratio=1")
TIMEOUT_S = 1500
LOST_S = 60  # promise 7


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        print(f"\n{nodes.how}")
        yield nodes


@pytest.fixture
def start(nodes: Nodes, tmp_path: Path) -> Callable[[], list[Script]]:
    def both() -> list[Script]:
        command = ("run.sh", "--demo", *OPTIONS, f"--results={tmp_path / 'run'}")
        logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
        return [nodes.start(rank, *command, log=log) for rank, log in enumerate(logs)]

    return both


def kill(scripts: list[Script], rank: int) -> None:
    """SIGKILL to run.sh of one rank; the other ends within the minute and names it."""
    scripts[rank].process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    other = scripts[1 - rank]
    assert other.wait(LOST_S) == 1, other.text()
    print(f"rank {rank} killed; the other ended after {time.monotonic() - killed:.0f} s")
    assert re.search(rf"^run\.sh: rank {rank} is lost \(", other.text(), re.MULTILINE)
    assert all(script.gone(LOST_S) for script in scripts), [script.left() for script in scripts]


def wait_in(scripts: list[Script], happens: Callable[[], object], what: str) -> None:
    def happened_or_ended() -> object:
        assert all(s.process.poll() is None for s in scripts), [s.text() for s in scripts]
        return happens()

    wait_for(happened_or_ended, TIMEOUT_S, what)


def trains(logs: Path) -> bool:
    """Both ranks of a role are together, and a step is made."""
    return all(
        "Running training" in log.read_text(errors="replace") if log.exists() else False
        for log in (logs / "gen_sft.log", logs / "gen_sft.rank1.log")
    )


def test_promise_7_two_nodes_complete_a_macro_iteration_though_rank_0_is_killed_in_training(
    start, tmp_path
):
    run = tmp_path / "run"
    scripts = start()
    wait_in(scripts, lambda: trains(run / "iter_1/logs"), "training on both nodes")
    kill(scripts, 0)
    for script in (again := start()):
        assert script.wait(TIMEOUT_S) == 0, script.text()
        assert script.gone(), script.left()
    assert "starting the server" not in again[0].text().rpartition("run folder")[2]
    check_ids(run)
    check_shared_work(run)


def check_ids(run: Path) -> None:
    """Sample id for sample id what one node would be asked to produce."""
    asked = [f"i1-q{number:06d}" for number in range(INSTRUCTIONS)]
    assert sorted(ids(run, "instructions")) == asked
    kept = [row["id"] for row in read_rows(run / "iter_1/instructions/data.jsonl")]
    responses = {f"{name}-r{number}" for name in kept for number in range(2)}
    assert set(ids(run, "initial_responses")) == responses
    initial = [row["id"] for row in read_rows(run / "iter_1/initial_responses/data.jsonl")]
    extensions = {f"{name}-e{number}" for name in initial for number in range(2)}
    assert set(ids(run, "extended_responses")) == extensions
    for step in ("instructions", "initial_responses", "extended_responses"):
        units = read_json(run / f"iter_1/{step}/summary.json")["units"]
        assert len(ids(run, step)) == len(set(ids(run, step))) == units["in"]


def ids(run: Path, step: str) -> list[str]:
    return [record["id"] for record in read_rows(run / f"iter_1/{step}/journal.jsonl")]


def check_shared_work(run: Path) -> None:
    """Requests went to the workers of both nodes, and both ranks trained both adapters."""
    logs = run / "iter_1/logs"
    for server in ("server", "server-rank1"):
        log = (logs / server / "worker_0.log").read_text()
        answered = int(re.search(r"answered (\d+) requests$", log, re.MULTILINE)[1])
        print(f"{server}: {answered} requests")
        assert answered > INSTRUCTIONS
    for role in ("gen_sft", "ext_sft"):
        for rank, name in ((0, f"{role}.log"), (1, f"{role}.rank1.log")):
            assert f"Process rank: {rank}, world size: 2" in (logs / name).read_text()
        assert (run / f"iter_1/lora/{role}/adapter_model.safetensors").stat().st_size > 1000
        assert read_json(run / f"iter_1/lora/{role}.manifest.json")["steps"] > 0
    assert not list(run.glob(".api_key-*"))


def test_promise_7_rank_1_killed_in_a_step_ends_rank_0_and_nothing_accepted_is_lost(
    start, tmp_path
):
    journal = tmp_path / "run/iter_1/extended_responses/journal.jsonl"
    scripts = start()
    wait_in(scripts, lambda: journal.exists() and journal.stat().st_size, "an extension")
    accepted = journal.read_bytes()
    accepted = accepted[: accepted.rfind(b"\n") + 1]
    kill(scripts, 1)
    assert journal.read_bytes().startswith(accepted)


# Inside a node: what a request without the key gets, and the addresses that anything listens on.
LOOK = """
import socket, sys
import httpx
print(httpx.get(sys.argv[1] + "/models", trust_env=False).status_code)
for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in open(table).readlines()[1:]:
        _, local, _, state = line.split()[:4]
        if state == "0A":
            address = bytes.fromhex(local.partition(":")[0])
            print(socket.inet_ntoa(address[::-1]) if len(address) == 4 else local)
"""


def test_promise_10_across_nodes_all_listen_on_the_nodes_address_and_ask_for_a_key(
    start, nodes, tmp_path
):
    """Looked at while rank 0 serves, from its place."""
    if nodes.inside[0] == ():
        pytest.skip("on loopback both nodes see each other's sockets")
    ready = tmp_path / "run/iter_1/logs/server/ready.json"
    scripts = start()
    try:
        wait_in(scripts, ready.exists, "the server of rank 0")
        url = read_json(ready)["base_url"]
        assert url.startswith(f"http://{nodes.master_addr}:")
        look = [*nodes.inside[0], sys.executable, "-c", LOOK, url]
        seen = subprocess.run(look, capture_output=True, text=True, timeout=120, check=True)
        status, *addresses = seen.stdout.split()
        assert status == "401"
        assert nodes.master_addr in addresses
        assert set(addresses) <= {nodes.master_addr, "127.0.0.1"}
    finally:
        for script in scripts:
            script.interrupt()
        for script in scripts:
            script.wait(120)
    assert all(script.gone(LOST_S) for script in scripts)
