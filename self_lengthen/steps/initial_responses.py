"""Step 1: the Generator answers every instruction twice; finished, unrepetitive answers stay.

Reads iter_N/instructions; writes iter_N/initial_responses, after drop_short.
"""

from self_lengthen.attempts import ATTEMPTS, Tried, first_accepted
from self_lengthen.endpoint import ContextOverflowError
from self_lengthen.extension import call_seed
from self_lengthen.fanout import Outcome, Tally
from self_lengthen.files import Lines
from self_lengthen.filters import Reason, check_response
from self_lengthen.runfolder import INITIAL, INSTRUCTIONS, model_name
from self_lengthen.steps.common import StepRun, fan_out, finish_fan_out
from self_lengthen.text import count_words

RESPONSES = 2  # independent ones per instruction; paper's release

STEP = INITIAL


def make(step: StepRun) -> None:
    """Answer every instruction of this iteration."""
    instructions = Lines(step.input(INSTRUCTIONS).data)
    attempts, ratio = step.options.get("attempts", ATTEMPTS), step.options["finish_ratio"]
    step.claim(instructions=len(instructions), attempts=attempts, finish_ratio=ratio)
    model, sampling = model_name("generator", step.iteration), step.watched_sampling

    async def answer(tally: Tally, unit: int) -> Outcome:
        asked = instructions[unit // RESPONSES]
        name = f"{asked['id']}-r{unit % RESPONSES}"

        async def attempt(number: int) -> Tried:
            seed = call_seed(step.seed, name, number)
            reply = await tally.chat(model, asked["instruction"], sampling, seed=seed)
            reason = check_response(step.family, reply.text, reply.finish_reason)
            if reason:
                return None, reason
            response = reply.text.strip()
            return {
                "id": name,
                "instruction_id": asked["id"],
                "instruction": asked["instruction"],
                "response": response,
                "words": count_words(response),
                "family": step.family.name,
                "iteration": step.iteration,
                "model": model,
                "attempt": number,
                "seed": seed,
                "finish_reason": reply.finish_reason,
            }, None

        try:
            return Outcome(name, *await first_accepted(tally, attempt, attempts), tally)
        except ContextOverflowError:
            return Outcome(name, None, Reason.CONTEXT, tally)

    counts, seconds = fan_out(step, RESPONSES * len(instructions), answer)
    finish_fan_out(step, counts, seconds, drop_shortest=True)
