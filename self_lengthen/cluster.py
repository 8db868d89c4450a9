"""The nodes of a run know of each other: who is there, who is late, who failed, what is to be done.

    with Cluster(node, timeout_s) as cluster:
        cluster.barrier("claimed", 60)
        number = cluster.order({"do": "serve"})       # rank 0
        answers = cluster.answers(number, "serving", 600)

Each rank publishes one small JSON value in a TCPStore on rank 0 and reads those of the others,
every second, in one thread. Everybody else looks at what was read last and never waits for the
network. The store is for talk; truth is the files. A run of one node opens no port and no store.
"""

import datetime
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from self_lengthen.errors import RunError, UserError
from self_lengthen.files import Row
from self_lengthen.node import Node

BEAT_S = 1.0
LOST_AFTER_S = 30.0  # without a new value; stopping takes the rest of the minute that is promised
STORE_TIMEOUT_S = 10.0
LEAVE_S = 5.0  # for the others to read our last value
POLL_S = 0.1
SAY_EVERY_S = 30.0

log = logging.getLogger("run.sh")


class Cluster:
    """One rank's view of all."""

    def __init__(self, node: Node, timeout_s: float) -> None:
        """Entering it meets the other nodes; RunError names the ranks that did not come in time."""
        self.node, self.timeout_s = node, timeout_s
        self.others = [rank for rank in range(node.size) if rank != node.rank]
        self._own: Row = {"beat": 0, "arrived": []}
        self._seen: dict[int, Row] = {}
        self._heard: dict[int, float] = {}
        self._lock = threading.Lock()
        self._broken: str | None = None
        self._stop = threading.Event()
        self._passed_on = False  # what ends this rank is another's failure
        self._round_ended = time.monotonic()

    # What everybody says

    def publish(self, **fields: Any) -> None:
        """The others see it within two beats."""
        with self._lock:
            self._own = {**self._own, **fields}

    def state(self, rank: int) -> Row:
        """What `rank` said last; empty before its first word."""
        with self._lock:
            return self._own if rank == self.node.rank else self._seen.get(rank, {})

    def check(self) -> None:
        """Raises RunError when another rank has failed or is lost, UserError for its mistake."""
        if not self.others:
            return
        for rank in self.others:
            failed = self.state(rank).get("failed")
            if failed:
                line = failed["line"] if failed["passed_on"] else f"rank {rank}: {failed['line']}"
                self._passed_on = True
                raise (UserError if failed["mistake"] else RunError)(line)
        if self._broken:
            self._lost(0, self._broken)
        heard = {0: self._round_ended, **self._heard}  # a round ends when rank 0's store answers
        for rank, heard_s in heard.items():
            silence_s = time.monotonic() - heard_s
            if silence_s > LOST_AFTER_S and not self.state(rank).get("left"):
                self._lost(rank, f"silent for {silence_s:.0f} s")

    def _lost(self, rank: int, reason: str) -> NoReturn:
        self._passed_on = True
        raise RunError(f"rank {rank} is lost ({reason}); the same command on every node continues")

    # Waiting for each other

    def wait(self, what: str, timeout_s: float, there: Callable[[int], object]) -> None:
        """Until it is so for all other ranks. Raises RunError that names those it is not so for."""
        started = spoke = time.monotonic()
        while missing := [rank for rank in self.others if not there(rank)]:
            self.check()
            now = time.monotonic()
            if now - started > timeout_s:
                raise RunError(f"{_ranks(missing)} missing: waited {timeout_s:.0f} s for {what}")
            if now - spoke > SAY_EVERY_S:
                spoke = now
                log.info("waiting for %s: %s missing", what, _ranks(missing))
            time.sleep(POLL_S)

    def barrier(self, name: str, timeout_s: float) -> None:
        """All ranks arrive at `name` before one goes on; a name is used once."""
        self.publish(arrived=[*self._own["arrived"], name])
        self.wait(name, timeout_s, lambda rank: name in self.state(rank).get("arrived", []))

    # Rank 0 orders, the others do and answer

    def order(self, what: Row) -> int:
        """Publish the next order (rank 0); its number, by which it is answered."""
        number = self._own.get("order", {"number": 0})["number"] + 1
        self.publish(order={**what, "number": number})
        return number

    def next_order(self, after: int) -> Row | None:
        """Rank 0's order when it is newer than the one of number `after`."""
        order = self.state(0).get("order")
        return order if order and order["number"] > after else None

    def answer(self, number: int, **what: Any) -> None:
        self.publish(answer={**what, "number": number})

    def answer_of(self, rank: int, number: int) -> Row | None:
        answer = self.state(rank).get("answer")
        return answer if answer and answer["number"] == number else None

    def answers(self, number: int, what: str, timeout_s: float) -> list[Row]:
        """The answers of all other ranks, in their order."""
        self.wait(what, timeout_s, lambda rank: self.answer_of(rank, number))
        return [self.state(rank)["answer"] for rank in self.others]

    # The thread

    def _talk(self) -> None:
        while True:
            last = self._stop.is_set()
            try:
                self._round()
            except RuntimeError as error:  # torch's errors of a store
                self._broken = str(error).splitlines()[0]
                return
            self._round_ended = time.monotonic()
            if last:
                return
            self._stop.wait(BEAT_S)

    def _round(self) -> None:
        self.publish(beat=self._own["beat"] + 1)
        self._store.set(f"rank/{self.node.rank}", json.dumps(self._own))
        for rank in self.others:
            key = f"rank/{rank}"
            if rank not in self._seen and not self._store.check([key]):
                continue
            state = json.loads(self._store.get(key))
            with self._lock:
                if state["beat"] != self._seen.get(rank, {}).get("beat"):
                    self._heard[rank] = time.monotonic()
                self._seen[rank] = state

    # The end

    def __enter__(self) -> "Cluster":
        if self.others:
            self._store = _open_store(self.node, self.timeout_s)
            self._round_ended = time.monotonic()
            self._thread = threading.Thread(target=self._talk, daemon=True)
            self._thread.start()
            try:
                self.wait("run.sh there", self.timeout_s, lambda rank: self.state(rank))
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.others:
            return
        if error is not None:
            self.publish(failed={**_failure(error), "passed_on": self._passed_on})
        self.publish(left=True)
        if self.node.leads:  # the store ends with us: let the others read our last value
            self._wait_until_left()
        self._stop.set()
        self._thread.join(LEAVE_S)

    def _wait_until_left(self) -> None:
        deadline = time.monotonic() + LEAVE_S
        while time.monotonic() < deadline:
            if all(self.state(rank).get("left") for rank in list(self._seen)):
                return
            time.sleep(POLL_S)


def _failure(error: BaseException) -> Row:
    known = isinstance(error, UserError | RunError)
    line = str(error).splitlines()[0] if known else type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        line = "interrupted"
    return {"line": line, "mistake": isinstance(error, UserError)}


def _ranks(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names} is" if len(ranks) == 1 else f"ranks {names} are"


def _open_store(node: Node, timeout_s: float) -> Any:
    """The TCPStore of the run, with this rank entered. It listens on rank 0's own address only."""
    from torch.distributed import TCPStore  # seconds to import

    where = f"MASTER_ADDR={node.master_addr} MASTER_PORT={node.master_port}"
    listener = _listen(node, where) if node.leads else None
    if listener is None:
        _wait_for_port(node, where, timeout_s)
    try:
        store = TCPStore(
            node.master_addr,
            node.master_port,
            is_master=node.leads,
            timeout=datetime.timedelta(seconds=STORE_TIMEOUT_S),
            wait_for_workers=False,
            master_listen_fd=listener and listener.detach(),
        )
        taken = store.add(f"taken/{node.rank}", 1) > 1
    except RuntimeError as error:
        raise RunError(
            f"{where}: no run.sh answers there ({str(error).splitlines()[0]})"
        ) from error
    if taken:
        raise UserError(f"RANK={node.rank}: another node has it; each node has its own")
    return store


def _listen(node: Node, where: str) -> socket.socket:
    try:
        return socket.create_server((node.address, node.master_port))
    except OSError as error:
        raise UserError(
            f"{where}: cannot listen there ({os.strerror(error.errno)}); give another MASTER_PORT"
        ) from error


def _wait_for_port(node: Node, where: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    log.info("waiting for rank 0 at %s", where)
    while True:
        try:
            return socket.create_connection((node.master_addr, node.master_port), 2).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"rank 0 is missing: waited {timeout_s:.0f} s for {where} ({error})"
                ) from error
        time.sleep(POLL_S)
