"""Fine-tune both roles of one iteration on all nodes: side by side, or one after the other.

Rank 0 prepares the folders, orders the others to start their share, and writes the manifests. A
training that fails after it had got on is started again from its last checkpoint; one that fails
without a step made would only fail again.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from self_lengthen.cluster import Cluster
from self_lengthen.errors import RunError
from self_lengthen.files import Row, wait_for_file
from self_lengthen.node import ALONE
from self_lengthen.ports import free_ports
from self_lengthen.training.launch import (
    TrainingJob,
    finish,
    prepare,
    run_jobs,
    steps_made,
)

MOST_RESTARTS = 3
STOP_TIMEOUT_S = 60.0  # for the others' trainers to be gone

log = logging.getLogger("run.sh")


def train(
    jobs: Sequence[TrainingJob],
    logs: Path,
    *,
    side_by_side: bool,
    timeout_s: float,
    cluster: Cluster | None = None,
) -> None:
    """Run the jobs that are not complete. Raises RunError with the log of one that failed."""
    cluster = cluster or Cluster(ALONE, 0)
    todo = [job for job in jobs if not job.manifest.exists()]
    groups = [todo] if side_by_side else [[job] for job in todo]
    for group in filter(None, groups):
        _train_at_once(group, logs, timeout_s, cluster)


def _train_at_once(
    jobs: Sequence[TrainingJob], logs: Path, timeout_s: float, cluster: Cluster
) -> None:
    restarts = 0
    while todo := [job for job in jobs if not job.manifest.exists()]:
        before = sum(map(steps_made, todo))
        failure = _attempt(todo, logs, timeout_s, cluster)
        if failure is None:
            continue
        if restarts == MOST_RESTARTS or sum(map(steps_made, todo)) <= before:
            raise RunError(failure)
        restarts += 1
        first_line = failure.splitlines()[0]
        log.warning("%s; from the last checkpoint, restart %d", first_line, restarts)


def _attempt(
    jobs: Sequence[TrainingJob], logs: Path, timeout_s: float, cluster: Cluster
) -> str | None:
    """Train on all nodes; why it failed, after which nobody trains any more."""
    for job in jobs:
        prepare(job)
    free = free_ports(cluster.node.address, len(jobs))
    ports = {job.role: port for job, port in zip(jobs, free, strict=True)}
    order = {"do": "train", "iteration": jobs[0].iteration, "ports": ports}
    number = cluster.order(order)

    def finished(job: TrainingJob, seconds: float) -> None:
        finish(job, logs / f"{job.role}.log", seconds)

    failure = run_jobs(jobs, logs, ports, timeout_s, _trouble(cluster, number), finished)
    if failure is None:
        cluster.answers(number, "the end of training there", STOP_TIMEOUT_S)
    else:
        cluster.answers(cluster.order({"do": "stop"}), "the stop of training", STOP_TIMEOUT_S)
    return failure


def _trouble(cluster: Cluster, number: int) -> Callable[[], str | None]:
    def trouble() -> str | None:
        cluster.check()
        for rank in cluster.others:
            answer = cluster.answer_of(rank, number)
            if answer and answer["failed"]:
                return f"rank {rank}: {answer['failed']}"
        return None

    return trouble


def take_part(
    order: Row, jobs: Sequence[TrainingJob], logs: Path, timeout_s: float, cluster: Cluster
) -> None:
    """This node's share of a training that rank 0 has ordered; the answer says how it ended."""
    jobs = [job for job in jobs if job.role in order["ports"]]
    for job in jobs:
        wait_for_file(job.config_file, "rank 0")

    def called_off() -> str | None:
        cluster.check()
        return "called off" if cluster.next_order(order["number"]) else None

    failure = run_jobs(jobs, logs, order["ports"], timeout_s, called_off, lambda *_: None)
    cluster.answer(order["number"], failed=failure)
