"""What a final fine-tune consists of: its stages as jobs, on one node or several, and the merge.

Pure: options in, command lines and configurations out. `self_lengthen/final_sft.py` runs them.
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from self_lengthen.family import ModelFamily
from self_lengthen.files import Row
from self_lengthen.node import Node
from self_lengthen.training.config import TrainingValues, sft_config
from self_lengthen.training.launch import TrainingJob, device_env

SFT, ANNEAL = "sft", "anneal"  # the stages


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
    results: Path
    gpus: list[str]
    sharding: str | None
    node: Node
    seed: int
    trust_remote_code: bool
    timeout_s: float
    fresh: bool = False  # a finished fine-tune is never set aside

    @property
    def model(self) -> Path:
        return self.results / "model"

    @property
    def logs(self) -> Path:
        return self.results / "logs"

    @property
    def options(self) -> Row:
        """What the weights depend on."""
        return {
            "base_model": self.base_model,
            "family": self.family.name,
            "data": [str(path) for path in self.data],
            "mix_with": [str(path) for path in self.mix_with],
            "mix_ratio": self.mix_ratio,
            "anneal_epochs": self.anneal_epochs,
            "finetuning": self.finetuning,
            "seed": self.seed,
            **asdict(self.values),
        }

    def jobs(self) -> list[TrainingJob]:
        """The stages in order; annealing goes on from what the first one trained."""
        jobs = [self._job(SFT, None, self.values)]
        if self.anneal_epochs:
            values = replace(self.values, epochs=self.anneal_epochs)
            jobs.append(self._job(ANNEAL, jobs[0].output, values))
        return jobs

    def _job(self, stage: str, before: Path | None, values: TrainingValues) -> TrainingJob:
        output = self.results / "train" / stage
        full = self.finetuning == "full"
        config = sft_config(
            stage,
            base_model=str(before) if full and before else self.base_model,
            template=self.family.training_template,
            data=self.results / "data",
            output=output,
            previous_adapter=None if full else before,
            values=values,
            devices=max(1, len(self.gpus)) * self.node.size,
            sharding=self.sharding,
            seed=self.seed,
            trust_remote_code=self.trust_remote_code,
            finetuning=self.finetuning,
        )
        env = device_env(self.gpus, self.node)
        return TrainingJob(stage, config, output.with_name(f"{stage}.yaml"), env)

    def merge_command(self) -> list[str]:
        trained = self.jobs()[-1].output
        command = [sys.executable, "-m", "self_lengthen.training.merge"]
        command += [f"--base_model={self.base_model}", f"--trained={trained}"]
        command.append(f"--output={self.model}")
        return command + ["--trust_remote_code"] * self.trust_remote_code
