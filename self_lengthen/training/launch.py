"""What a node does of a fine-tuning: its command lines, running them, and the files around them.

together.py has the order of things, on one node or many.

Reads iter_N/sft; writes iter_N/lora/<role>/ and, last, iter_N/lora/<role>.manifest.json.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from self_lengthen.cli import command_line
from self_lengthen.errors import RunError
from self_lengthen.family import ModelFamily
from self_lengthen.files import read_json, read_rows, write_json
from self_lengthen.node import ALONE, Node, interface_of
from self_lengthen.owned import Owned
from self_lengthen.runfolder import ROLES, SFT, RunFolder
from self_lengthen.training.chat import STUBS
from self_lengthen.training.config import TrainingValues, sft_config, write_config
from self_lengthen.training.trainer import TRAINER

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
    iteration: int = 1

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", TRAINER, str(self.config_file)]

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
    sharding: str | None,
    side_by_side: bool,
    node: Node = ALONE,
) -> list[TrainingJob]:
    """The jobs of both roles on this node. Side by side each has half of the GPUs, or of the cores.

    `options`: the run's, of which base_model, seed and trust_remote_code are used. `sharding`: of
    the weights over the GPUs, one of SHARDINGS; None without any.
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
            devices=max(1, len(share)) * node.size,
            sharding=sharding,
            seed=options["seed"],
            trust_remote_code=options["trust_remote_code"],
        )
        env = device_env(share, node, jobs_at_once=2 if side_by_side else 1)
        jobs.append(TrainingJob(role, config, output.with_name(f"{role}.yaml"), env, iteration))
    return jobs


def _shares(gpus: Sequence[str], parts: int) -> list[list[str]]:
    size = len(gpus) // parts
    return [list(gpus[i * size : (i + 1) * size]) for i in range(parts)]


def device_env(gpus: Sequence[str], node: Node = ALONE, jobs_at_once: int = 1) -> dict[str, str]:
    """For a job that has these GPUs, or without any its share of the CPU, on this node."""
    return {**_nodes_env(node), **(_gpu_env(gpus) if gpus else _cpu_env(jobs_at_once))}


def _gpu_env(gpus: Sequence[str]) -> dict[str, str]:
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # texts of any length, no gaps
        "FORCE_TORCHRUN": "1",  # DeepSpeed needs a launcher also on one GPU
        "NPROC_PER_NODE": str(len(gpus)),
    }


def _cpu_env(jobs_at_once: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // jobs_at_once)
    return {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(STUBS)])),
    }


def _nodes_env(node: Node) -> dict[str, str]:
    """LLaMA-Factory's names; nothing for a node that is alone."""
    if node.alone:
        return {}
    env = {"NNODES": str(node.size), "NODE_RANK": str(node.rank), "MASTER_ADDR": node.master_addr}
    env |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"}  # on GPUs: their number
    interface = interface_of(node.address)
    return {**env, "GLOO_SOCKET_IFNAME": interface} if interface else env


def run_jobs(
    jobs: Sequence[TrainingJob],
    logs: Path,
    ports: Mapping[str, int],
    timeout_s: float,
    trouble: Callable[[], str | None],
    finished: Callable[[TrainingJob, float], None],
) -> str | None:
    """Run the jobs at once, on this node. Why they were stopped: a failure of one, or `trouble`.

    `ports`: of each role, on rank 0. Raises RunError at the deadline.
    """
    started = spoke = time.monotonic()
    with ExitStack() as stack:
        running = {job: stack.enter_context(_start(job, logs, ports)) for job in jobs}
        while running:
            for job, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                if status != 0:
                    line = f"{process.name} ended with status {status}; log: {process.log}"
                    return f"{line}\n{process.log_tail()}"
                del running[job]
                finished(job, time.monotonic() - started)
            if why := trouble():
                return why
            now = time.monotonic()
            if now - started > timeout_s:
                names = ", ".join(p.name for p in running.values())
                raise RunError(f"{names} did not end within {timeout_s:.0f} s; logs: {logs}")
            if now - spoke > SPEAK_EVERY_S:
                spoke = now
                log.info("; ".join(f"{p.name}: {_steps(j)}" for j, p in running.items()))
            time.sleep(POLL_S)
    return None


def _start(job: TrainingJob, logs: Path, ports: Mapping[str, int]) -> Owned:
    rank = job.env.get("NODE_RANK", "0")
    log_file = logs / (f"{job.role}.log" if rank == "0" else f"{job.role}.rank{rank}.log")
    return Owned(
        f"training of {job.role}", job.command, log_file, process_env(job, ports[job.role])
    )


def prepare(job: TrainingJob) -> None:
    """Clear what LLaMA-Factory would stumble over: torn checkpoints, and a folder without any."""
    for checkpoint in job.output.glob("checkpoint-*"):
        if not _can_be_resumed(checkpoint, deepspeed="deepspeed" in job.config):
            shutil.rmtree(checkpoint)
    if job.output.exists() and not any(job.output.glob("checkpoint-*")):
        shutil.rmtree(job.output)
    write_config(job.config, job.config_file)


def _can_be_resumed(checkpoint: Path, *, deepspeed: bool) -> bool:
    """The trainer writes its state last. DeepSpeed goes on from its own checkpoints only."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return not deepspeed or (checkpoint / "latest").exists()


def process_env(job: TrainingJob, port: int) -> dict[str, str]:
    """The job's own, its port, and ninja on PATH, with which DeepSpeed builds what it lacks."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**job.env, "MASTER_PORT": str(port), "PATH": path, "DISABLE_VERSION_CHECK": "1"}


def finish(job: TrainingJob, log_file: Path, seconds: float) -> None:
    """Write the manifest of a training that has ended well. Raises RunError without weights."""
    if not any(job.output.glob("*model*.safetensors")):
        raise RunError(f"training of {job.role} ended without weights; log: {log_file}")
    losses = [row["loss"] for row in read_rows(_trainer_log(job)) if "loss" in row]
    write_json(
        job.manifest,
        {"role": job.role, "seconds": round(seconds, 1), "steps": len(losses), "losses": losses},
    )
    for checkpoint in job.output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # last: a half-removed one could not be resumed from


def steps_made(job: TrainingJob) -> int:
    """Optimisation steps that the trainer has logged."""
    try:
        return max(row.get("current_steps", 0) for row in read_rows(_trainer_log(job)))
    except (OSError, ValueError):  # ValueError: torn, or no row yet
        return 0


def _trainer_log(job: TrainingJob) -> Path:
    return job.output / "trainer_log.jsonl"


def _steps(job: TrainingJob) -> str:
    try:
        rows = list(read_rows(_trainer_log(job)))
        return f"step {rows[-1]['current_steps']} of {rows[-1]['total_steps']}"
    except (OSError, ValueError, IndexError, KeyError):
        return "starting"
