"""The training data of a final fine-tune, in LLaMA-Factory's format.

Writes <output>/data: sft.jsonl (ours, and general chat data where asked for), anneal.jsonl (ours
alone), dataset_info.json. Ours are checked row by row; general rows that are no plain conversation
are passed over and counted.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from self_lengthen.errors import UserError
from self_lengthen.files import Row, write_json, write_rows
from self_lengthen.runfolder import StepFolder
from self_lengthen.training.chat import default_system_prompt, load_tokenizer, verify_template
from self_lengthen.training.conversations import Conversation, Rows, sample
from self_lengthen.training.final import ANNEAL, SFT, Plan

ROLE_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}

log = logging.getLogger("run_sft.sh")


class Sources:
    """All rows of a plan's files, looked at once. Raises UserError for a wrong file or row."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ours = [Rows(path) for path in plan.data]
        self.general = [Rows(path) for path in plan.mix_with]
        self.count = sum(1 for _ in self.clean())
        if not self.count:
            raise UserError(f"--data={plan.data[0]}: holds no row")
        self.lost: Counter[str] = Counter()

    def clean(self) -> Iterator[Conversation]:
        return chain.from_iterable(rows.all() for rows in self.ours)

    def mixed(self) -> Iterator[Conversation]:
        """General conversations, mix_ratio for each of ours."""
        wanted = round(self.plan.mix_ratio * self.count)
        return sample(self.general, wanted, random.Random(self.plan.seed), self.lost)


def write_data(sources: Sources, folder: StepFolder) -> None:
    """Both stages' data and, last, the manifest. Raises UserError when the template is another."""
    plan = sources.plan
    tokenizer = load_tokenizer(plan.base_model, plan.trust_remote_code)
    system = default_system_prompt(plan.family, tokenizer)
    *_, asked, answer = next(sources.clean())
    verify_template(
        *(plan.family, plan.base_model, asked["content"], answer["content"]),
        plan.trust_remote_code,
    )
    clean = lambda: (with_system(turns, system) for turns in sources.clean())  # noqa: E731
    mixed = (with_system(turns, system) for turns in sources.mixed())
    count = write_rows(folder.path / f"{SFT}.jsonl", chain(clean(), mixed))
    if plan.anneal_epochs:
        write_rows(folder.path / f"{ANNEAL}.jsonl", clean())
    write_json(folder.path / "dataset_info.json", dataset_info(plan))
    tell(sources, count - sources.count)
    units = {"ours": sources.count, "general": count - sources.count}
    folder.finish_with(count, {"units": units, "passed_over": dict(sources.lost)})


def with_system(turns: Conversation, system: str) -> Row:
    """The row with the system prompt that serving would give it, unless it has one."""
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return {"messages": turns}


def dataset_info(plan: Plan) -> dict[str, Any]:
    kind = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": ROLE_TAGS}
    return {job.role: {"file_name": f"{job.role}.jsonl", **kind} for job in plan.jobs()}


def tell(sources: Sources, general: int) -> None:
    ratio = sources.plan.mix_ratio
    log.info("%d conversations of ours, %d general ones", sources.count, general)
    for path, lost in sources.lost.items():
        log.warning("%s: %d rows are no plain conversation and were passed over", path, lost)
    if sources.general and general < round(ratio * sources.count):
        log.warning("--mix_with holds too few for 1 : %g; all of them are mixed in", ratio)
