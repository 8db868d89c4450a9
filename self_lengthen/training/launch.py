"""Fine-tune both roles of one iteration with LLaMA-Factory: side by side, or one after the other.

Reads iter_N/sft; writes iter_N/lora/<role>/ and, last, iter_N/lora/<role>.manifest.json.
"""

import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from self_lengthen.cli import command_line
from self_lengthen.errors import RunError
from self_lengthen.family import ModelFamily
from self_lengthen.files import read_json, read_rows, write_json
from self_lengthen.owned import Owned
from self_lengthen.runfolder import ROLES, SFT, RunFolder
from self_lengthen.training.chat import STUBS
from self_lengthen.training.config import TrainingValues, sft_config, write_config

POLL_S = 0.5
SPEAK_EVERY_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One role's fine-tuning in one iteration: its configuration and its command line."""

    role: str
    config: dict
    config_file: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        cli = Path(sys.executable).with_name("llamafactory-cli")
        return [str(cli), "train", str(self.config_file)]

    @property
    def output(self) -> Path:
        return Path(self.config["output_dir"])

    @property
    def manifest(self) -> Path:
        return self.output.with_name(f"{self.role}.manifest.json")

    def __str__(self) -> str:
        return command_line(self.command, self.env)


def plan_training(
    run: RunFolder,
    iteration: int,
    family: ModelFamily,
    options: Mapping[str, Any],
    values: TrainingValues,
    gpus: Sequence[str],
    *,
    side_by_side: bool,
) -> list[TrainingJob]:
    """The jobs of both roles. Side by side each has half of the GPUs, or of the cores.

    `options`: the run's, of which base_model, seed and trust_remote_code are used.
    """
    shares = _shares(gpus, len(ROLES)) if side_by_side else [list(gpus)] * len(ROLES)
    jobs = []
    for role, share in zip(ROLES, shares, strict=True):
        output = run.adapter(iteration, role)
        config = sft_config(
            role,
            base_model=options["base_model"],
            template=family.training_template,
            data=run.step(iteration, SFT).path,
            output=output,
            previous_adapter=run.adapter(iteration - 1, role) if iteration > 1 else None,
            values=values,
            devices=max(1, len(share)),
            cuda=bool(share),
            seed=options["seed"],
            trust_remote_code=options["trust_remote_code"],
        )
        env = _gpu_env(share) if share else _cpu_env(2 if side_by_side else 1)
        jobs.append(TrainingJob(role, config, output.with_name(f"{role}.yaml"), env))
    return jobs


def _shares(gpus: Sequence[str], parts: int) -> list[list[str]]:
    size = len(gpus) // parts
    return [list(gpus[i * size : (i + 1) * size]) for i in range(parts)]


def device_env(gpus: Sequence[str]) -> dict[str, str]:
    """For a job that has all of these GPUs, or without any the whole CPU."""
    return _gpu_env(gpus) if gpus else _cpu_env(1)


def _gpu_env(gpus: Sequence[str]) -> dict[str, str]:
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "FORCE_TORCHRUN": "1",  # DeepSpeed needs a launcher also on one GPU
        "NPROC_PER_NODE": str(len(gpus)),
    }


def _cpu_env(jobs_at_once: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // jobs_at_once)
    return {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(STUBS)])),
    }


def train(jobs: Sequence[TrainingJob], logs: Path, *, side_by_side: bool, timeout_s: float) -> None:
    """Run the jobs that are not complete. Raises RunError with the log of one that failed."""
    todo = [job for job in jobs if not job.manifest.exists()]
    groups = [todo] if side_by_side else [[job] for job in todo]
    for group in filter(None, groups):
        _train_together(group, logs, timeout_s)


def _train_together(jobs: Sequence[TrainingJob], logs: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        running: dict[TrainingJob, Owned] = {}
        started = time.monotonic()
        for job in jobs:
            _prepare(job)
            process = Owned(
                f"training of {job.role}", job.command, logs / f"{job.role}.log", process_env(job)
            )
            running[job] = stack.enter_context(process)
        spoke = time.monotonic()
        while running:
            for job, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[job]
                _finish(job, process, status, time.monotonic() - started)
            if time.monotonic() > deadline:
                names = ", ".join(p.name for p in running.values())
                raise RunError(f"{names} did not end within {timeout_s:.0f} s; logs: {logs}")
            if time.monotonic() - spoke > SPEAK_EVERY_S:
                spoke = time.monotonic()
                log.info("; ".join(f"{p.name}: {_steps(j)}" for j, p in running.items()))
            time.sleep(POLL_S)


def _prepare(job: TrainingJob) -> None:
    """Clear what LLaMA-Factory would stumble over: torn checkpoints, and a folder without any."""
    for checkpoint in job.output.glob("checkpoint-*"):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)
    if job.output.exists() and not any(job.output.glob("checkpoint-*")):
        shutil.rmtree(job.output)
    write_config(job.config, job.config_file)


def _is_complete(checkpoint: Path) -> bool:
    """The trainer writes its state last."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return True


def process_env(job: TrainingJob) -> dict[str, str]:
    """The job's own, a free port if it has none, our interpreter's folder on PATH for torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"MASTER_PORT": str(port), **job.env, "PATH": path, "DISABLE_VERSION_CHECK": "1"}


def _finish(job: TrainingJob, process: Owned, status: int, seconds: float) -> None:
    if status != 0 or not any(job.output.glob("*model*.safetensors")):
        raise RunError(
            f"{process.name} ended with status {status}; log: {process.log}\n{process.log_tail()}"
        )
    losses = [row["loss"] for row in read_rows(job.output / "trainer_log.jsonl") if "loss" in row]
    write_json(
        job.manifest,
        {"role": job.role, "seconds": round(seconds, 1), "steps": len(losses), "losses": losses},
    )
    for checkpoint in job.output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # last: a half-removed one could not be resumed from


def _steps(job: TrainingJob) -> str:
    try:
        rows = list(read_rows(job.output / "trainer_log.jsonl"))
        return f"step {rows[-1]['current_steps']} of {rows[-1]['total_steps']}"
    except (OSError, ValueError, IndexError, KeyError):
        return "starting"
