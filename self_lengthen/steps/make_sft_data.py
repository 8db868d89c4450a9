"""Step 4: the kept extensions become training data for both roles, in LLaMA-Factory's format.

Reads iter_N/filtered; writes iter_N/sft/{gen_sft,ext_sft}.jsonl and dataset_info.json.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from self_lengthen.errors import RunError
from self_lengthen.family import ModelFamily
from self_lengthen.files import Row, read_rows, write_json, write_rows
from self_lengthen.runfolder import EXTENDER_SFT, FILTERED, GENERATOR_SFT, ROLES, SFT
from self_lengthen.steps.common import StepRun, summary
from self_lengthen.training.chat import default_system_prompt, load_tokenizer, verify_template

KEEP_LINE = (
    0.8  # of a draft's lines, so that the Extender learns to add, not only to copy; paper's release
)

STEP = SFT

# LLaMA-Factory's name of each part of a row -> ours
COLUMNS = {"prompt": "prompt", "response": "response", "system": "system"}


def make(step: StepRun) -> None:
    """Write the training data of both roles."""
    started = time.monotonic()
    filtered = step.input(FILTERED)
    base_model, trust = step.options["base_model"], step.options["trust_remote_code"]
    tokenizer = load_tokenizer(base_model, trust)
    system = default_system_prompt(step.family, tokenizer)
    step.claim()
    folder = step.folder.path
    makers = {
        GENERATOR_SFT: lambda row: (row["instruction"], row["response"]),
        EXTENDER_SFT: lambda row: extender_pair(step.family, row, step.rng("lines", row["id"])),
    }
    for role, make_pair in makers.items():
        rows = sft_rows(read_rows(filtered.data), make_pair, system)
        count = write_rows(folder / f"{role}.jsonl", rows)
    if count == 0:
        raise RunError(
            f"{filtered.path}: no extended response was left to train on; see its summary.json and "
            "those of the steps before for the reasons"
        )
    if step.iteration == 1:  # the same in every iteration
        sample = next(read_rows(folder / f"{EXTENDER_SFT}.jsonl"))
        verify_template(step.family, base_model, sample["prompt"], sample["response"], trust)
    write_dataset_info(folder)
    units = {"in": count, "kept": count, "dropped": {}, "failed": 0, "cut": 0}
    step.folder.finish_with(count, summary(step, units, time.monotonic() - started))


def sft_rows(rows: Iterator[Row], make_pair, system: str) -> Iterator[Row]:
    for row in rows:
        prompt, response = make_pair(row)
        yield {"id": row["id"], "system": system, "prompt": prompt, "response": response}


def extender_pair(family: ModelFamily, row: Row, rng: random.Random) -> tuple[str, str]:
    """The extend prompt with a thinned draft -> the extended response."""
    draft = thin_draft(row["initial"], family.draft_separator, rng)
    return family.extend_prompt(row["instruction"], draft), row["response"]


def thin_draft(draft: str, separator: str, rng: random.Random) -> str:
    """The draft's lines, each kept with probability KEEP_LINE; all of them when none would stay."""
    lines = [line for line in draft.split("\n") if line.strip()]
    kept = [line for line in lines if rng.random() < KEEP_LINE]
    # It ends the prompt: a chat template may trim there, LLaMA-Factory's does not.
    return separator.join(kept or lines).rstrip()


def write_dataset_info(folder: Path) -> None:
    """LLaMA-Factory's index of the data sets of a folder."""
    info = {role: {"file_name": f"{role}.jsonl", "columns": COLUMNS} for role in ROLES}
    write_json(folder / "dataset_info.json", info)
