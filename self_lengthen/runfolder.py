"""Where everything of a run lies, and what its steps share.

    results/<run>/run.json                  options, versions, git commit, seed
    results/<run>/iter_N/<step>/            journal.jsonl, data.jsonl, summary.json, manifest.json
    results/<run>/iter_N/lora/<role>_sft/   adapters
    results/<run>/iter_N/logs/              one file a process

A step is complete when its manifest.json exists: it is written last. The step's `step.json` holds
the options that its data depend on; a step started with others refuses to go on.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from self_lengthen.errors import UserError
from self_lengthen.files import Journal, Lines, Row, read_json, write_json, write_rows

INSTRUCTIONS = "instructions"
INITIAL = "initial_responses"
EXTENDED = "extended_responses"
FILTERED = "filtered"
SFT = "sft"

GENERATOR_SFT = "gen_sft"
EXTENDER_SFT = "ext_sft"
ROLES = (GENERATOR_SFT, EXTENDER_SFT)

BASE_MODEL = "base"  # the name under which the base model is served


def adapter_name(role: str, trained_in: int) -> str:
    """The served name of an adapter, never that of others: vLLM's prefix cache is keyed by it."""
    return f"{role}-iter{trained_in}"


def model_name(role: str, iteration: int) -> str:
    """Who plays the role in `iteration`: first the base model, then the last adapter."""
    return BASE_MODEL if iteration == 1 else adapter_name(role, iteration - 1)


@dataclass(frozen=True)
class StepFolder:
    path: Path

    @property
    def data(self) -> Path:
        """The step's rows: JSON lines that `datasets.load_dataset("json", ...)` reads."""
        return self.path / "data.jsonl"

    @property
    def complete(self) -> bool:
        return (self.path / "manifest.json").exists()

    def require(self) -> "StepFolder":
        if not self.complete:
            raise UserError(f"{self.path} is not complete: run the step that makes it first")
        return self

    def open_journal(self) -> Journal:
        return Journal(self.path / "journal.jsonl")

    def claim(self, options: Row) -> None:
        """Note what the data depend on; refuse to mix them with data made from other options."""
        file = self.path / "step.json"
        if not file.exists():
            write_json(file, options)
            return
        for name, before in read_json(file).items():
            if options.get(name) != before:
                raise UserError(
                    f"{self.path} was started with {name}={before}, not {options.get(name)}: "
                    "give the same value, or --fresh to start over beside it"
                )

    def finish(self, rows: Iterator[Row], summary: Row) -> None:
        """Write the rows, the summary and, last, the manifest."""
        count = write_rows(self.data, rows)
        self.finish_with(count, summary)

    def finish_with(self, count: int, summary: Row) -> None:
        write_json(self.path / "summary.json", summary)
        write_json(self.path / "manifest.json", {"rows": count, "units": summary["units"]})


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @cached_property
    def options(self) -> dict[str, Any]:
        file = self.path / "run.json"
        if not file.exists():
            raise UserError(f"{file} is missing: start the run with run.sh, or give its --results")
        return read_json(file)["options"]

    def iteration(self, number: int) -> Path:
        return self.path / f"iter_{number}"

    def step(self, iteration: int, name: str) -> StepFolder:
        return StepFolder(self.iteration(iteration) / name)

    def adapter(self, iteration: int, role: str) -> Path:
        return self.iteration(iteration) / "lora" / role

    def logs(self, iteration: int) -> Path:
        return self.iteration(iteration) / "logs"


class KeptRecords:
    """The kept records of a finished journal in the order of their units; no row is held."""

    def __init__(self, journal: Path) -> None:
        self._lines = Lines(journal)
        units, numbers = array("q"), array("q")
        for number in range(len(self._lines)):
            record = self._lines[number]
            if record["kept"]:
                units.append(record["unit"])
                numbers.append(number)
        self._numbers = np.array(numbers)[np.argsort(units, kind="stable")]

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self) -> Iterator[Row]:
        for number in self._numbers:
            yield self._lines[int(number)]["row"]
