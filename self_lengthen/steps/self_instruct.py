"""Step 0: the base model writes new instructions, and judges whether they suit a long text.

Reads the seeds; writes iter_N/instructions. Asks the base model, in every iteration.
"""

from pathlib import Path

from self_lengthen.compact import Digests, Texts
from self_lengthen.endpoint import ContextOverflowError
from self_lengthen.errors import UserError
from self_lengthen.extension import call_seed
from self_lengthen.fanout import Outcome, Tally
from self_lengthen.files import Row, read_rows
from self_lengthen.filters import Reason, instruction_key, read_judge
from self_lengthen.runfolder import BASE_MODEL, INSTRUCTIONS
from self_lengthen.seeds import read_seeds
from self_lengthen.steps.common import StepRun, fan_out, finish_fan_out
from self_lengthen.text import count_words

EXAMPLES = 2  # shown before the one to be written; paper's release
MAX_ATTEMPTS = 10  # per instruction, with new examples each time; paper's release
MIN_WORDS, MAX_WORDS = 3, 500  # an instruction has more and fewer words; paper's release

STEP = INSTRUCTIONS


def make(step: StepRun) -> None:
    """Write instruct_count new instructions."""
    step.claim(instruct_count=step.options["instruct_count"], seeds=step.options["seeds"])
    writer = InstructionWriter(step)
    counts, seconds = fan_out(step, step.options["instruct_count"], writer.write)
    finish_fan_out(step, counts, seconds)


class InstructionWriter:
    """Holds the pool of examples and what has been accepted, so that nothing is accepted twice."""

    def __init__(self, step: StepRun) -> None:
        self.step, self.family = step, step.family
        self.pool = Texts(read_seeds(Path(step.options["seeds"])))
        if len(self.pool) < EXAMPLES:
            raise UserError(f"{step.options['seeds']}: has fewer than {EXAMPLES} seed instructions")
        self.taken = Digests()
        for seed in self.pool:
            self.taken.add(instruction_key(seed))
        for earlier in step.earlier(INSTRUCTIONS):
            for row in read_rows(earlier.data):
                self.taken.add(instruction_key(row["instruction"]))
        journal = step.folder.open_journal()
        for record in journal.records():
            if record["kept"]:
                self._accept(record["row"]["instruction"])
        journal.close()
        self.sampling = step.sampling

    def _accept(self, instruction: str) -> None:
        self.taken.add(instruction_key(instruction))
        if self.family.pool_grows:
            self.pool.append(instruction)

    async def write(self, tally: Tally, unit: int) -> Outcome:
        name = f"{self.step.label}-q{unit:06d}"
        reason: str | None = None
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                row, reason = await self._attempt(tally, name, unit, attempt)
            except ContextOverflowError:
                row, reason = None, Reason.CONTEXT
            if row is not None:
                tally.accepted += 1
                self._accept(row["instruction"])
                return Outcome(name, row, None, tally)
            tally.rejected[str(reason)] += 1
        return Outcome(name, None, reason, tally)

    async def _attempt(
        self, tally: Tally, name: str, unit: int, attempt: int
    ) -> tuple[Row | None, str | None]:
        rng = self.step.rng(unit, attempt)
        examples = rng.sample(self.pool, EXAMPLES)
        seed = call_seed(self.step.seed, name, attempt)
        reply = await tally.chat(
            BASE_MODEL,
            self.family.self_instruct_prompt(),
            self._list_sampling(),
            seed=seed,
            opened_with=self._opening(examples),
        )
        instruction = reply.text.strip()
        reason = self._check(instruction, reply.finish_reason) or await self._judge(
            tally, instruction, seed
        )
        if reason is None and instruction_key(instruction) in self.taken:
            reason = Reason.DUPLICATE  # again: another unit may have taken it while the judge read
        if reason is not None:
            return None, reason
        return {
            "id": name,
            "instruction": instruction,
            "words": count_words(instruction),
            "examples": examples,
            "family": self.family.name,
            "iteration": self.step.iteration,
            "model": BASE_MODEL,
            "attempt": attempt,
            "seed": seed,
            "finish_reason": reply.finish_reason,
        }, None

    def _list_sampling(self):
        stop = (*self.sampling.stop, self.family.list_stop)
        return type(self.sampling)(max_tokens=self.sampling.max_tokens, stop=stop)

    def _opening(self, examples: list[str]) -> str:
        """The assistant's list up to the label of the item to be written.

        Without its trailing space: a tokenizer that joins a space to the next word has seldom seen
        a text that ends in one.
        """
        items = [*examples, ""]
        label = self.family.instruction_label
        return "\n".join(label.format(n=n) + item for n, item in enumerate(items, 1)).rstrip()

    def _check(self, instruction: str, finish_reason: str | None) -> Reason | None:
        words = count_words(instruction)
        if not instruction:
            return Reason.EMPTY
        if finish_reason == "length":
            return Reason.TRUNCATED
        if words <= MIN_WORDS:
            return Reason.TOO_SHORT
        if words >= MAX_WORDS:
            return Reason.TOO_LONG
        return Reason.DUPLICATE if instruction_key(instruction) in self.taken else None

    async def _judge(self, tally: Tally, instruction: str, seed: int) -> Reason | None:
        prompt = self.family.judge_prompt(instruction)
        reply = await tally.chat(BASE_MODEL, prompt, self.sampling, seed=seed)
        verdict = read_judge(self.family, reply.text)
        if verdict is None:
            return Reason.JUDGE_UNCLEAR
        return None if verdict else Reason.JUDGE_NO
