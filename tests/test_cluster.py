"""Claims about the nodes of a run: they meet, wait, obey, and none hangs when one is lost.

Promise 7. Ranks are threads or processes on loopback, with a store on a real port.
"""

import datetime
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from self_lengthen import agreement, cluster
from self_lengthen.claim import PROOF_PREFIX, claim_folder
from self_lengthen.cluster import Cluster
from self_lengthen.errors import RunError, UserError
from self_lengthen.node import ALONE, Node
from self_lengthen.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 120


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat is 50 ms; a rank is lost after 8 s, for which a busy machine may let it wait."""
    monkeypatch.setattr(cluster, "BEAT_S", 0.05)
    monkeypatch.setattr(cluster, "POLL_S", 0.02)
    monkeypatch.setattr(cluster, "LOST_AFTER_S", 8.0)


@pytest.fixture
def nodes() -> Callable[[int], list[Node]]:
    def make(size: int) -> list[Node]:
        [port] = free_ports("127.0.0.1", 1)
        return [Node(rank, size, "127.0.0.1", port, "127.0.0.1") for rank in range(size)]

    return make


def together(
    nodes: list[Node], work: Callable[[Cluster], object], timeout_s: float = LIMIT_S
) -> list[object]:
    """Each node's work in a thread of its own; what it returned or raised, by rank."""
    ends: list[object] = [None] * len(nodes)

    def run(index: int, node: Node) -> None:
        try:
            with Cluster(node, timeout_s) as here:
                ends[index] = work(here)
        except (UserError, RunError, KeyboardInterrupt) as error:
            ends[index] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return ends


def told(ends: list[object]) -> list[str]:
    return [f"{type(end).__name__}: {end}" for end in ends]


def test_a_node_alone_opens_no_store_and_waits_for_nobody():
    with Cluster(ALONE, 0) as here:
        here.barrier("anything", 0)
        assert here.answers(here.order({"do": "stop"}), "nothing", 0) == []
        here.check()
        assert not hasattr(here, "_store")


def test_a_barrier_lets_nobody_pass_before_all_are_there(nodes):
    arrived: list[int] = []

    def work(here: Cluster) -> int:
        time.sleep(0.2 * here.node.rank)
        arrived.append(here.node.rank)
        here.barrier("there", LIMIT_S)
        return len(arrived)

    assert together(nodes(3), work) == [3, 3, 3]


def test_a_barrier_names_who_is_missing(nodes):
    def work(here: Cluster) -> None:
        if here.node.rank == 0:
            here.barrier("there", 0.5)
        here.wait("the end", LIMIT_S, lambda rank: False)

    ends = told(together(nodes(3), work))
    line = "ranks 1, 2 are missing: waited 0 s for there"
    assert ends[0] == f"RunError: {line}"
    assert ends[1:] == [f"RunError: rank 0: {line}"] * 2


def test_a_rank_that_never_comes_is_named(nodes):
    two_of_three = nodes(3)[:2]
    ends = told(together(two_of_three, lambda here: None, timeout_s=1))
    assert all("rank 2 is missing: waited 1 s for run.sh there" in end for end in ends)


def test_without_rank_0_the_place_of_the_meeting_is_named(nodes):
    _, second = nodes(2)
    with pytest.raises(RunError) as failure, Cluster(second, 0.3):
        pass
    place = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={second.master_port}"
    assert str(failure.value).startswith(f"rank 0 is missing: waited 0 s for {place} (")


def test_orders_are_obeyed_one_by_one_and_answered(nodes):
    def work(here: Cluster) -> list[object]:
        if here.node.leads:
            numbers = [here.order({"do": "serve"}), 0]
            first = here.answers(numbers[0], "serving", LIMIT_S)
            second = here.answers(here.order({"do": "end"}), "the end", LIMIT_S)
            return [*(a["did"] for a in first), *(a["did"] for a in second)]
        seen, last = [], 0
        while "end" not in seen:
            if order := here.next_order(last):
                last = order["number"]
                seen.append(order["do"])
                here.answer(last, did=f"{here.node.rank} {order['do']}")
            here.check()
        return seen

    leader, *others = together(nodes(3), work)
    assert leader == ["1 serve", "2 serve", "1 end", "2 end"]
    assert others == [["serve", "end"]] * 2


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (RunError("no space\nand a log"), "RunError", "no space"),
        (UserError("--seed is wrong"), "UserError", "--seed is wrong"),
        (KeyboardInterrupt(), "RunError", "interrupted"),
    ],
)
def test_promise_7_the_failure_of_one_ends_all_with_its_rank_and_line(
    nodes, rank, error, kind, line
):
    def work(here: Cluster) -> None:
        if here.node.rank == rank:
            raise error
        here.wait("ever", LIMIT_S, lambda rank: False)

    ends = together(nodes(3), work)
    assert ends.pop(rank) is error
    assert told(ends) == [f"{kind}: rank {rank}: {line}"] * 2


MEMBER = """
import json, sys, time
from self_lengthen import cluster
from self_lengthen.node import Node
cluster.BEAT_S = 0.05
with cluster.Cluster(Node(*json.loads(sys.argv[1])), 30) as here:
    print("met", flush=True)
    time.sleep(60)
"""


@pytest.mark.real  # waits until a rank counts as lost: too slow for the fast tests
@pytest.mark.parametrize("killed", [0, 1])
def test_promise_7_a_killed_rank_is_noticed_and_named(nodes, killed):
    pair = nodes(2)
    node = pair.pop(killed)
    arguments = json.dumps([node.rank, node.size, node.master_addr, node.master_port, node.address])
    command = [sys.executable, "-c", MEMBER, arguments]
    member = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def work(here: Cluster) -> None:
        member.stdout.readline()
        member.kill()
        here.wait("ever", LIMIT_S, lambda rank: False)

    started = time.monotonic()
    (end,) = together(pair, work)
    member.wait()
    assert told([end])[0].startswith(f"RunError: rank {killed} is lost (")
    assert str(end).endswith("; the same command on every node continues")
    assert time.monotonic() - started < LIMIT_S


def test_a_store_that_does_not_answer_is_a_lost_rank_0():
    here = Cluster(Node(1, 2, "127.0.0.1", 1, "127.0.0.1"), 1)
    here._round_ended = time.monotonic() - 9  # the thread hangs in a call
    with pytest.raises(RunError, match=r"^rank 0 is lost \(silent for \d+ s\)"):
        here.check()


def test_a_rank_that_is_silent_is_lost_unless_it_left_in_peace():
    here = Cluster(Node(0, 2, "127.0.0.1", 1, "127.0.0.1"), 1)
    here._heard, here._seen = {1: time.monotonic() - 9}, {1: {"beat": 5, "left": True}}
    here.check()
    here._seen = {1: {"beat": 5}}
    with pytest.raises(RunError, match=r"^rank 1 is lost \(silent for \d+ s\)"):
        here.check()


def test_two_nodes_of_one_rank_are_refused(nodes):
    first, second = nodes(2)
    ends = told(together([first, second, second], lambda here: here.barrier("there", LIMIT_S)))
    assert sorted(ends[1:]) == [
        "NoneType: None",
        "UserError: RANK=1: another node has it; each node has its own",
    ]


def test_the_store_listens_on_the_nodes_own_address_alone(nodes):
    leader = replace(nodes(1)[0], size=2, master_addr="127.0.0.2", address="127.0.0.2")
    store = cluster._open_store(leader, 1)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", leader.master_port), 1)
    socket.create_connection(("127.0.0.2", leader.master_port), 1).close()
    del store


def test_a_port_in_use_is_a_mistake_that_names_it(nodes):
    leader, _ = nodes(2)
    with socket.create_server(("127.0.0.1", leader.master_port)):
        (end,) = together([leader], lambda here: None)
    assert str(end) == (
        f"MASTER_ADDR=127.0.0.1 MASTER_PORT={leader.master_port}: cannot listen there (Address "
        "already in use); give another MASTER_PORT"
    )


def test_values_in_the_store_are_json_and_nothing_is_unpickled(nodes):
    def work(here: Cluster) -> dict:
        here.barrier("there", LIMIT_S)
        timeout = datetime.timedelta(seconds=5)
        eavesdropper = TCPStore("127.0.0.1", here.node.master_port, timeout=timeout)
        value = json.loads(eavesdropper.get(f"rank/{here.node.rank}"))
        here.barrier("read", LIMIT_S)
        return value

    values = together(nodes(2), work)
    assert all({"beat", "arrived"} <= value.keys() for value in values)


class TestAgreement:
    @pytest.fixture
    def plan(self, tmp_path: Path) -> SimpleNamespace:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        (tmp_path / "model" / "model.safetensors").write_text("1234")
        options = {"seed": 42, "base_model": str(tmp_path / "model")}
        return SimpleNamespace(
            options=options, results=tmp_path / "new" / "run", fresh=False, gpus=[]
        )

    def agree(self, nodes, plans: list[SimpleNamespace]) -> list[object]:
        return together(
            nodes(len(plans)), lambda here: agreement.agree(here, plans[here.node.rank])
        )

    def test_equal_nodes_agree_and_leave_no_file(self, nodes, plan, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        assert self.agree(nodes, [plan, plan, plan]) == [None, None, None]
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("changed", "name", "here", "there"),
        [
            ({"options": {"seed": 43}}, "--seed", "43", "42"),
            ({"options": {"family": "qwen"}}, "--family", "qwen", "None"),
            ({"fresh": True}, "--fresh", "True", "False"),
            ({"gpus": ["0", "1"]}, "the number of GPUs", "2", "0"),
        ],
    )
    def test_the_difference_is_named_on_every_node(self, nodes, plan, changed, name, here, there):
        options = {**plan.options, **changed.get("options", {})}
        other = SimpleNamespace(**{**vars(plan), **changed, "options": options})
        line = (
            f"{name} is {here}, on rank 0 {there}: start every node with the same command, code "
            "and model"
        )
        ends = told(self.agree(nodes, [plan, other, plan]))
        assert ends[1] == f"UserError: {line}"
        assert ends[0] == ends[2] == f"UserError: rank 1: {line}"

    def test_a_proof_that_a_killed_start_left_is_no_other_file(self, plan):
        plan.results.mkdir(parents=True)
        (plan.results / f"{PROOF_PREFIX}123").touch()
        with claim_folder(plan):
            assert (plan.results / "run.json").exists()

    def test_other_weights_are_noticed(self, plan):
        model = Path(plan.options["base_model"])
        before = agreement.model_digest(model)
        assert agreement.model_digest(model) == before
        (model / "model.safetensors").write_text("12345")
        assert agreement.model_digest(model) != before

    def test_another_commit_or_version_is_named(self, nodes, plan, monkeypatch):
        answers = iter(["abc", "abd"])
        monkeypatch.setattr(agreement, "git_commit", lambda: next(answers))
        ends = told(self.agree(nodes, [plan, plan]))
        assert any("the git commit is ab" in end for end in ends)

    def test_a_disk_that_is_not_shared_is_named_and_nothing_is_left(
        self, nodes, plan, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(agreement, "SHARED_DISK_S", 0.5)

        def never(path: Path, said_by: str) -> Path:
            raise RunError(f"{path} does not show up")

        monkeypatch.setattr(agreement, "wait_for_file", never)
        before = sorted(tmp_path.rglob("*"))
        ends = told(self.agree(nodes, [plan, plan]))
        assert ends[1].startswith(f"UserError: --results={plan.results}: {tmp_path}/")
        assert ends[0].startswith(f"UserError: rank 1: --results={plan.results}: ")
        assert sorted(tmp_path.rglob("*")) == before
