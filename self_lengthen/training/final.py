"""What a final fine-tune consists of: its stages as jobs, on one node or several, and the merge.

Pure: options in, command lines and configurations out. `self_lengthen/final_sft.py` runs them.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from self_lengthen.errors import UserError
from self_lengthen.family import ModelFamily
from self_lengthen.training.config import TrainingValues, sft_config
from self_lengthen.training.launch import TrainingJob, device_env

SFT, ANNEAL = "sft", "anneal"  # the stages


@dataclass(frozen=True)
class Nodes:
    """Of how many nodes this is which; WORLD_SIZE and RANK count nodes, not GPUs."""

    size: int = 1
    rank: int = 0
    master_addr: str = ""
    master_port: int = 0

    def env(self, stage: int, gpus: int) -> dict[str, str]:
        """LLaMA-Factory's names. Each stage has a port of its own: the last one may be in use."""
        if self.size == 1:
            return {}
        return {
            "FORCE_TORCHRUN": "1",
            "NNODES": str(self.size),
            "NODE_RANK": str(self.rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port + stage),
            "NPROC_PER_NODE": str(max(1, gpus)),
        }


def read_nodes(environ: Mapping[str, str] = os.environ) -> Nodes:
    """Raises UserError that names the variable that is missing or wrong."""
    try:
        size, rank = (int(environ.get(name, n)) for name, n in (("WORLD_SIZE", 1), ("RANK", 0)))
        port = int(environ.get("MASTER_PORT", 0))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE, RANK and MASTER_PORT must be numbers: {error}") from error
    if size <= 1:
        return Nodes()
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank}: is not one of WORLD_SIZE={size} nodes, from 0")
    if not environ.get("MASTER_ADDR") or not port:
        raise UserError(f"WORLD_SIZE={size}: MASTER_ADDR and MASTER_PORT, of node 0, must be set")
    return Nodes(size, rank, environ["MASTER_ADDR"], port)


@dataclass(frozen=True)
class Plan:
    """A checked fine-tune."""

    base_model: str
    family: ModelFamily
    data: list[Path]
    mix_with: list[Path]
    mix_ratio: float
    anneal_epochs: float
    finetuning: str
    values: TrainingValues
    output: Path
    gpus: list[str]
    nodes: Nodes
    seed: int
    trust_remote_code: bool
    timeout_s: float

    @property
    def model(self) -> Path:
        return self.output / "model"

    def jobs(self) -> list[TrainingJob]:
        """The stages in order; annealing goes on from what the first one trained."""
        jobs = [self._job(SFT, 0, self.values)]
        if self.anneal_epochs:
            jobs.append(self._job(ANNEAL, 1, replace(self.values, epochs=self.anneal_epochs)))
        return jobs

    def _job(self, stage: str, number: int, values: TrainingValues) -> TrainingJob:
        output, before = self.output / "train" / stage, None
        if number:
            before = self.output / "train" / SFT
        full = self.finetuning == "full"
        config = sft_config(
            stage,
            base_model=str(before) if full and before else self.base_model,
            template=self.family.training_template,
            data=self.output / "data",
            output=output,
            previous_adapter=None if full else before,
            values=values,
            devices=max(1, len(self.gpus)) * self.nodes.size,
            cuda=bool(self.gpus),
            seed=self.seed,
            trust_remote_code=self.trust_remote_code,
            finetuning=self.finetuning,
        )
        env = {**device_env(self.gpus), **self.nodes.env(number, len(self.gpus))}
        return TrainingJob(stage, config, output.with_name(f"{stage}.yaml"), env)

    def merge_command(self) -> list[str]:
        trained = self.jobs()[-1].output
        command = [sys.executable, "-m", "self_lengthen.training.merge"]
        command += [f"--base_model={self.base_model}", f"--trained={trained}"]
        command.append(f"--output={self.model}")
        return command + ["--trust_remote_code"] * self.trust_remote_code
