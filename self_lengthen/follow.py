"""What a node other than rank 0 does: it serves and trains as rank 0 orders, until the end.

An order is answered when it is carried out. While a server runs here it is watched; the loss or
failure of another rank ends this one, and the same command on every node continues.
"""

import logging
import time
from pathlib import Path

from self_lengthen.cluster import Cluster
from self_lengthen.files import Row, wait_for_file
from self_lengthen.options import Plan
from self_lengthen.owned import Owned
from self_lengthen.runfolder import ROLES, RunFolder
from self_lengthen.serving.share import POLL_S, start_server, still_running
from self_lengthen.training.launch import plan_training
from self_lengthen.training.together import take_part

log = logging.getLogger("run.sh")


class Follower:
    """One run on one of the nodes that rank 0 leads."""

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self.plan, self.cluster, self.run = plan, cluster, RunFolder(plan.results)
        self._server: Owned | None = None

    def go(self) -> None:
        """Until rank 0 says that the run has ended."""
        done = 0
        try:
            while True:
                order = self._next_order(done)
                done = order["number"]
                log.info("rank %d: %s", self.cluster.node.rank, _told(order))
                self._obey(order)
                if order["do"] == "end":
                    return
        finally:
            self._stop_server()

    def _next_order(self, done: int) -> Row:
        """Steps take days: only a loss, a failure or the order itself ends this wait."""
        while not (order := self.cluster.next_order(done)):
            self.cluster.check()
            if self._server:
                still_running(self._server)
            time.sleep(POLL_S)
        return order

    def _obey(self, order: Row) -> None:
        if order["do"] == "train":
            self._train(order)
            return
        self._stop_server()
        answer = self._serve(order) if order["do"] == "serve" else {}
        self.cluster.answer(order["number"], **answer)

    def _serve(self, order: Row) -> Row:
        iteration = order["iteration"]
        if iteration > 1:
            for role in ROLES:
                adapter = self.run.adapter(iteration - 1, role)
                wait_for_file(adapter / "adapter_config.json", "rank 0")
                wait_for_file(adapter / "adapter_model.safetensors", "rank 0")
        wait_for_file(Path(order["key_file"]), "rank 0")
        self._server, base_url = start_server(
            self.plan,
            iteration,
            self.cluster.check,
            f"--host={self.cluster.node.address}",
            f"--controller={order['controller']}",
            f"--api_key_file={order['key_file']}",
        )
        return {"base_url": base_url}

    def _stop_server(self) -> None:
        if self._server:
            self._server.stop()
        self._server = None

    def _train(self, order: Row) -> None:
        plan, iteration = self.plan, order["iteration"]
        jobs = plan_training(
            *(self.run, iteration, plan.family, plan.options, plan.training),
            [gpu.id for gpu in plan.gpus],
            sharding=plan.sharding,
            side_by_side=plan.side_by_side,
            node=plan.node,
        )
        timeout_s = plan.options["training_timeout_s"]
        take_part(order, jobs, self.run.logs(iteration), timeout_s, self.cluster)


def _told(order: Row) -> str:
    where = f" in iteration {order['iteration']}" if "iteration" in order else ""
    return {"serve": "serving", "train": "training"}.get(order["do"], order["do"]) + where
