"""Macro-iterations on this node: serve, steps 0-2, stop serving, steps 3-4, fine-tune both roles.

    bash run.sh --base_model=DIR --instruct_count=1000 --max_iter=3

Every finished step and training leaves a manifest; the same command skips what is complete and goes
on in the middle of a step. Writes below the run's folder only: see self_lengthen/runfolder.py.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from self_lengthen.claim import claim_folder
from self_lengthen.errors import RunError, main_exit
from self_lengthen.files import read_json
from self_lengthen.model import local_base_model
from self_lengthen.options import REPO_ROOT, Plan, read_options
from self_lengthen.owned import Owned
from self_lengthen.runfolder import (
    EXTENDED,
    EXTENDER_SFT,
    FILTERED,
    GENERATOR_SFT,
    INITIAL,
    INSTRUCTIONS,
    SFT,
    RunFolder,
    adapter_name,
)
from self_lengthen.training.launch import TrainingJob, plan_training, train

POLL_S = 0.3
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
    """One run on one node."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.run = plan, RunFolder(plan.results)
        self.options = plan.options

    def go(self) -> None:
        for iteration in range(1, self.options["max_iter"] + 1):
            self._iterate(iteration)
            self._report()

    def _iterate(self, iteration: int) -> None:
        todo = [s for s in STEPS if not self.run.step(iteration, s.name).complete]
        served = [step for step in todo if step.served]
        if served:
            log.info("iteration %d: starting the server", iteration)
            with self._timed(iteration, "serve"):
                server = self._start_server(iteration)
            with server:
                base_url = self._base_url(iteration)
                for step in served:
                    self._step(iteration, step, base_url, server)
                with self._timed(iteration, "stop_serving"):
                    server.stop()
        for step in todo:
            if not step.served:
                self._step(iteration, step, "", None)
        self._train(iteration)

    # Serving

    def server_command(self, iteration: int) -> list[str]:
        """run_server.sh of this iteration: the base model, and the adapters of the one before."""
        options = self.options
        command = [
            "bash",
            str(REPO_ROOT / "run_server.sh"),
            f"--base_model={options['base_model']}",
        ]
        command += [f"--adapter={n}={path}" for n, path in self.adapters(iteration).items()]
        for name in ("tensor_parallel", "max_model_len", "port", "controller_port", "worker_port"):
            if options[name]:
                command.append(f"--{name}={options[name]}")
        if options["trust_remote_code"]:
            command.append("--trust_remote_code")
        command += [f"--seed={options['seed']}", f"--log_dir={self._server_logs(iteration)}"]
        command.append(f"--startup_timeout_s={options['server_timeout_s']:g}")
        command.append(f"--ready_file={self._ready_file(iteration)}")
        return command

    def adapters(self, iteration: int) -> dict[str, str]:
        if iteration == 1:
            return {}
        roles = {"generator": GENERATOR_SFT, "extender": EXTENDER_SFT}
        before = iteration - 1
        return {
            adapter_name(role, before): str(self.run.adapter(before, folder))
            for role, folder in roles.items()
        }

    def _server_logs(self, iteration: int) -> Path:
        return self.run.logs(iteration) / "server"

    def _ready_file(self, iteration: int) -> Path:
        return self._server_logs(iteration) / "ready.json"

    def _start_server(self, iteration: int) -> Owned:
        ready = self._ready_file(iteration)
        ready.unlink(missing_ok=True)
        env = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.id for gpu in self.plan.gpus)}
        server_log = self._server_logs(iteration) / "server.log"
        server = Owned("server", self.server_command(iteration), server_log, env, grace_s=30)
        deadline = time.monotonic() + self.options["server_timeout_s"] + 60
        try:
            while not ready.exists():
                _still_running(server)
                if time.monotonic() > deadline:
                    raise RunError(
                        f"the server was not ready before the deadline; log: {server.log}"
                    )
                time.sleep(POLL_S)
        except BaseException:
            server.stop()
            raise
        return server

    def _base_url(self, iteration: int) -> str:
        return read_json(self._ready_file(iteration))["base_url"]

    # Steps

    def step_command(self, iteration: int, step: Step, base_url: str) -> list[str]:
        script = REPO_ROOT / self.plan.family.name / step.script
        command = [sys.executable, str(script), f"--results={self.run.path}"]
        command.append(f"--iteration={iteration}")
        if step.served:
            command += [f"--base_url={base_url}", f"--concurrency={self.options['concurrency']}"]
        return command

    def _step(self, iteration: int, step: Step, base_url: str, server: Owned | None) -> None:
        log.info("iteration %d: %s", iteration, step.script)
        command = self.step_command(iteration, step, base_url)
        with self._timed(iteration, step.phase), Owned(step.script, command, None) as process:
            deadline = time.monotonic() + STEP_TIMEOUT_S
            while (status := process.poll()) is None:
                if server is not None:
                    _still_running(server)
                if time.monotonic() > deadline:
                    raise RunError(f"{step.script} did not end within {STEP_TIMEOUT_S:.0f} s")
                time.sleep(POLL_S)
        if status != 0:
            raise RunError(f"{step.script} ended with status {status}; the reason is above")

    # Training

    def _train(self, iteration: int) -> None:
        jobs = self.training_jobs(iteration)
        if all(job.manifest.exists() for job in jobs):
            return
        log.info("iteration %d: fine-tuning %s", iteration, " and ".join(j.role for j in jobs))
        side_by_side, timeout_s = self.plan.side_by_side, self.options["training_timeout_s"]
        with self._timed(iteration, "train"):
            train(jobs, self.run.logs(iteration), side_by_side=side_by_side, timeout_s=timeout_s)

    def training_jobs(self, iteration: int) -> list[TrainingJob]:
        plan = self.plan
        gpus = [gpu.id for gpu in plan.gpus]
        return plan_training(
            *(self.run, iteration, plan.family, plan.options, plan.training, gpus),
            side_by_side=plan.side_by_side,
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
        done = subprocess.run(report, check=False, timeout=600)
        if done.returncode == 0:
            log.info("report: %s", self.run.path / "report.md")
        else:
            log.warning("the report was not written; again with: %s", shlex.join(report))


def _still_running(server: Owned) -> None:
    if (status := server.poll()) is not None:
        raise RunError(
            f"the server ended with status {status}; log: {server.log}\n{server.log_tail()}"
        )


def main() -> None:
    plan = read_options(sys.argv[1:])
    pipeline = Pipeline(plan)
    if plan.dry_run:
        from self_lengthen.dry_run import dry_run

        dry_run(pipeline)
        return
    plan.options["base_model"] = local_base_model(plan.options["base_model"])
    claim_folder(plan)
    signal.signal(signal.SIGTERM, on_terminate)
    started = time.monotonic()
    log.info("run folder: %s", plan.results)
    pipeline.go()
    log.info("done in %.1f min", (time.monotonic() - started) / 60)
    print(plan.results / "report.md")


def on_terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main_exit("run.sh", main)
