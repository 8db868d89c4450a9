"""Where everything of a run lies, and what its steps share.

    results/<run>/run.json                  options, versions, git commit, seed
    results/<run>/iter_N/<step>/            journal.jsonl, data.jsonl, summary.json, manifest.json
    results/<run>/iter_N/lora/<role>_sft/   adapters
    results/<run>/iter_N/logs/              one file a process
    results/<run>/collect_K/<step>/         the same steps, in rounds after the last iteration

A step is complete when its manifest.json exists: it is written last. The step's `step.json` holds
the options that its data depend on; a step started with others refuses to go on.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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

    def claim(self, options: Row, otherwise: str = "--fresh to start over beside it") -> None:
        """Note what the data depend on; refuse to mix them with data made from other options."""
        file = self.path / "step.json"
        if not file.exists():
            write_json(file, options)
            return
        for name, before in read_json(file).items():
            if options.get(name) != before:
                raise UserError(
                    f"{self.path} was started with {name}={before}, not {options.get(name)}: "
                    f"give the same value, or {otherwise}"
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

    def round(self, number: int) -> "Round":
        """A round of collection, from 1."""
        return Round(self.path / f"collect_{number}", number)

    def iterations(self) -> list[int]:
        """The numbers of the macro-iterations that were begun."""
        return _numbers(self.path, "iter_")

    def rounds(self) -> list[int]:
        """The numbers of the rounds of collection that were begun."""
        return _numbers(self.path, "collect_")

    def adapter(self, iteration: int, role: str) -> Path:
        return self.iteration(iteration) / "lora" / role

    def logs(self, iteration: int) -> Path:
        return self.iteration(iteration) / "logs"


def _numbers(folder: Path, prefix: str) -> list[int]:
    names = (path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*"))
    return sorted(int(name) for name in names if name.isdecimal())


@dataclass(frozen=True)
class Round:
    """Steps 0 and 1 once more with the last Generator: results/<run>/collect_K/."""

    path: Path
    number: int

    def step(self, name: str) -> StepFolder:
        return StepFolder(self.path / name)

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def begin(self, iteration: int, instruct_count: int) -> None:
        """Note what the round's data depend on, unless an earlier start has noted it.

        `iteration`: the one whose Generator would answer, the number after the last one trained.
        """
        if not self._file.exists():
            write_json(self._file, {"iteration": iteration, "instruct_count": instruct_count})

    @property
    def options(self) -> Row:
        """{"iteration": ..., "instruct_count": ...}, as the round was begun with."""
        if not self._file.exists():
            raise UserError(f"{self._file} is missing: begin the round with run_collect_data.sh")
        return read_json(self._file)

    @property
    def _file(self) -> Path:
        return self.path / "round.json"


def newest_run(root: Path) -> RunFolder:
    """The run below `root` that was started last. Raises UserError when there is none."""
    started = {file.stat().st_mtime_ns: file.parent for file in root.glob("*/run.json")}
    if not started:
        raise UserError(f"{root}: holds no run; start one with run.sh, or give --results=DIR")
    return RunFolder(started[max(started)])


class KeptRecords:
    """The kept records of a finished journal in the order of their units; no row is held."""

    def __init__(self, journal: Path) -> None:
        import numpy as np  # here: collect_data.py runs without packages

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
