"""Macro-iterations: serve, steps 0-2, stop serving, steps 3-4, fine-tune both roles.

    bash run.sh --base_model=DIR --instruct_count=1000 --max_iter=3

Every finished step and training leaves a manifest; the same command skips what is complete and goes
on in the middle of a step. Writes below the run's folder only: see self_lengthen/runfolder.py.
Several nodes start the same command (docs/cluster.md): rank 0 leads here, the others follow.py.
"""

import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from self_lengthen.agreement import agree
from self_lengthen.claim import claim_folder
from self_lengthen.cluster import Cluster
from self_lengthen.errors import RunError, main_exit
from self_lengthen.files import SHARED_DISK_S, Row
from self_lengthen.follow import Follower
from self_lengthen.model import local_base_model
from self_lengthen.node import hide_nodes, read_node
from self_lengthen.options import REPO_ROOT, Plan, read_options
from self_lengthen.owned import Owned
from self_lengthen.ports import free_ports
from self_lengthen.runfolder import EXTENDED, FILTERED, INITIAL, INSTRUCTIONS, SFT, RunFolder
from self_lengthen.serving.key import write_key
from self_lengthen.serving.share import READY_GRACE_S, start_server, still_running
from self_lengthen.training.launch import TrainingJob, plan_training
from self_lengthen.training.together import train

POLL_S = 0.3
OBEY_TIMEOUT_S = 120.0  # for the other nodes to stop what they do
REPORT_TIMEOUT_S = 600.0
STEP_TIMEOUT_S = 14 * 86400.0  # a step reports progress; this ends one that hangs for good

log = logging.getLogger("run.sh")


@dataclass(frozen=True)
class Step:
    name: str  # its folder
    script: str
    phase: str
    served: bool  # asks the server


STEPS = (
    Step(INSTRUCTIONS, "step0_self_instruct.py", "step0", True),
    Step(INITIAL, "step1_gen_initial_responses.py", "step1", True),
    Step(EXTENDED, "step2_extend_responses.py", "step2", True),
    Step(FILTERED, "step3_filter_responses.py", "step3", False),
    Step(SFT, "step4_make_sft_data.py", "step4", False),
)


class Pipeline:
    """One run, led from this node."""

    def __init__(self, plan: Plan, cluster: Cluster | None = None) -> None:
        self.plan, self.run = plan, RunFolder(plan.results)
        self.options = plan.options
        self.cluster = cluster or Cluster(plan.node, 0)
        self._key_file: Path | None = None

    def go(self) -> None:
        with ExitStack() as stack:
            if not self.plan.node.alone:
                self._key_file = write_key(self.run.path)
                stack.callback(self._key_file.unlink)
            self._work()
            end = self.cluster.order({"do": "end"})
            self.cluster.answers(end, "the end there", OBEY_TIMEOUT_S)

    def _work(self) -> None:
        for iteration in range(1, self.options["max_iter"] + 1):
            self._iterate(iteration)
            self._report()

    def _iterate(self, iteration: int) -> None:
        todo = [s for s in STEPS if not self.run.step(iteration, s.name).complete]
        served = [step for step in todo if step.served]
        if served:
            with self._serving(iteration) as (server, base_url):
                for step in served:
                    self._step(iteration, step, base_url, server)
        for step in todo:
            if not step.served:
                self._step(iteration, step, "", None)
        self._train(iteration)

    # Serving

    @contextmanager
    def _serving(self, iteration: int) -> Iterator[tuple[Owned, str]]:
        """The servers of all nodes: this one's, and the base URLs of all."""
        log.info("iteration %d: starting the server", iteration)
        with self._timed(iteration, "serve"):
            server, base_urls = self._start_servers(iteration)
        with server:
            yield server, base_urls
            with self._timed(iteration, "stop_serving"):
                number = self.cluster.order({"do": "stop"})
                server.stop()
                self.cluster.answers(number, "the stop of their servers", OBEY_TIMEOUT_S)

    def _start_servers(self, iteration: int) -> tuple[Owned, str]:
        cluster = self.cluster
        more, order = self._cluster_options(iteration)
        number = cluster.order(order)
        server, own_url = start_server(self.plan, iteration, cluster.check, *more)
        try:
            timeout_s = self.options["server_timeout_s"] + READY_GRACE_S
            answers = cluster.answers(number, "their servers", timeout_s)
        except BaseException:
            server.stop()
            raise
        return server, ",".join([own_url, *(answer["base_url"] for answer in answers)])

    def _cluster_options(self, iteration: int) -> tuple[list[str], Row]:
        """Of run_server.sh on this node, and the order for the others."""
        if self._key_file is None:
            return [], {}
        host = self.plan.node.address
        port = self.options["controller_port"] or free_ports(host, 1)[0]
        order = {
            "do": "serve",
            "iteration": iteration,
            "controller": f"http://{host}:{port}",
            "key_file": str(self._key_file),
        }
        key = f"--api_key_file={self._key_file}"
        return [f"--host={host}", f"--controller_port={port}", key], order

    # Steps

    def step_command(self, iteration: int, step: Step, base_url: str) -> list[str]:
        script = REPO_ROOT / self.plan.family.name / step.script
        command = [sys.executable, str(script), f"--results={self.run.path}"]
        command.append(f"--iteration={iteration}")
        if step.served:
            command += [f"--base_url={base_url}", f"--concurrency={self.options['concurrency']}"]
            if self._key_file:
                command.append(f"--api_key_file={self._key_file}")
        return command

    def _step(self, iteration: int, step: Step, base_url: str, server: Owned | None) -> None:
        log.info("iteration %d: %s", iteration, step.script)
        command = self.step_command(iteration, step, base_url)
        with self._timed(iteration, step.phase), Owned(step.script, command, None) as process:
            status = self._wait(process, server, STEP_TIMEOUT_S)
        if status != 0:
            raise RunError(f"{step.script} ended with status {status}; the reason is above")

    def _wait(self, process: Owned, server: Owned | None, timeout_s: float) -> int:
        """The status of `process`. Raises RunError when it, the server or a node is lost."""
        deadline = time.monotonic() + timeout_s
        while (status := process.poll()) is None:
            if server is not None:
                still_running(server)
            self.cluster.check()
            if time.monotonic() > deadline:
                raise RunError(f"{process.name} did not end within {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return status

    # Training

    def _train(self, iteration: int) -> None:
        jobs = self.training_jobs(iteration)
        if all(job.manifest.exists() for job in jobs):
            return
        log.info("iteration %d: fine-tuning %s", iteration, " and ".join(j.role for j in jobs))
        with self._timed(iteration, "train"):
            train(
                jobs,
                self.run.logs(iteration),
                side_by_side=self.plan.side_by_side,
                timeout_s=self.options["training_timeout_s"],
                cluster=self.cluster,
            )

    def training_jobs(self, iteration: int) -> list[TrainingJob]:
        plan = self.plan
        gpus = [gpu.id for gpu in plan.gpus]
        return plan_training(
            *(self.run, iteration, plan.family, plan.options, plan.training, gpus),
            sharding=plan.sharding,
            side_by_side=plan.side_by_side,
            node=plan.node,
        )

    # What a person looks at

    @contextmanager
    def _timed(self, iteration: int, phase: str) -> Iterator[None]:
        """Note the seconds of a phase, also of one that did not end."""
        started = time.monotonic()
        try:
            yield
        finally:
            line = {
                "iteration": iteration,
                "phase": phase,
                "seconds": round(time.monotonic() - started, 2),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with (self.run.path / "phases.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _report(self) -> None:
        """A report that cannot be drawn is no reason to end a run."""
        report = [sys.executable, "-m", "self_lengthen.report", str(self.run.path)]
        with Owned("the report", report, None) as process:
            status = self._wait(process, None, REPORT_TIMEOUT_S)
        if status == 0:
            log.info("report: %s", self.run.path / "report.md")
        else:
            log.warning("the report was not written; again with: %s", shlex.join(report))


def main() -> None:
    node = read_node()
    plan = read_options(sys.argv[1:], node)
    if plan.dry_run:
        from self_lengthen.dry_run import dry_run

        dry_run(Pipeline(plan))
        return
    hide_nodes()
    plan.options["base_model"] = local_base_model(plan.options["base_model"])
    signal.signal(signal.SIGTERM, on_terminate)
    with Cluster(node, plan.options["rendezvous_timeout_s"]) as cluster:
        agree(cluster, plan)
        with claim_folder(plan) if node.leads else nullcontext():
            cluster.barrier("the run's folder", SHARED_DISK_S)
            _work(plan, cluster)


def _work(plan: Plan, cluster: Cluster) -> None:
    if not plan.node.leads:
        Follower(plan, cluster).go()
        return
    started = time.monotonic()
    log.info("run folder: %s", plan.results)
    Pipeline(plan, cluster).go()
    log.info("done in %.1f min", (time.monotonic() - started) / 60)
    print(plan.results / "report.md")


def on_terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main_exit("run.sh", main)
