"""Step 2: the Extender lengthens every initial response twice; see self_lengthen/extension.py.

Reads iter_N/initial_responses; writes iter_N/extended_responses.
"""

from array import array
from dataclasses import asdict

from self_lengthen.attempts import ATTEMPTS, Tried, first_accepted
from self_lengthen.extension import MICRO_ROUNDS, call_seed, extend_once
from self_lengthen.fanout import Outcome, Tally
from self_lengthen.files import Lines, read_rows
from self_lengthen.runfolder import EXTENDED, INITIAL, model_name
from self_lengthen.steps.common import StepRun, fan_out, finish_fan_out
from self_lengthen.text import count_words

EXTENSIONS = 2  # per initial response; paper's release

STEP = EXTENDED


def make(step: StepRun) -> None:
    """Extend every initial response of this iteration."""
    initials = Lines(step.input(INITIAL).data)
    micro_rounds = step.options.get("micro_rounds", MICRO_ROUNDS)
    attempts = step.options.get("attempts", ATTEMPTS)
    step.claim(
        initial_responses=len(initials),
        micro_rounds=micro_rounds,
        attempts=attempts,
        finish_ratio=step.options["finish_ratio"],
    )
    model = model_name("extender", step.iteration)
    order = list(range(len(initials)))
    step.rng("order").shuffle(order)
    # What takes longest begins first, so that no engine idles at the end for the sake of one text.
    words = array("q", (row["words"] for row in read_rows(step.input(INITIAL).data)))
    units = range(EXTENSIONS * len(order))
    longest_first = sorted(units, key=lambda unit: -words[order[unit // EXTENSIONS]])

    async def extend(tally: Tally, unit: int) -> Outcome:
        initial = initials[order[unit // EXTENSIONS]]
        name = f"{initial['id']}-e{unit % EXTENSIONS}"

        async def attempt(number: int) -> Tried:
            extension = await extend_once(
                tally,
                model,
                step.family,
                initial["instruction"],
                initial["response"],
                step.watched_sampling,
                lambda call: call_seed(step.seed, name, number, call),
                micro_rounds,
            )
            if extension.reason:
                return None, extension.reason
            return {
                "id": name,
                "initial_id": initial["id"],
                "instruction_id": initial["instruction_id"],
                "instruction": initial["instruction"],
                "initial": initial["response"],
                "response": extension.text,
                "initial_words": initial["words"],
                "words": count_words(extension.text),
                "rounds": [asdict(round_) for round_ in extension.rounds],
                "family": step.family.name,
                "iteration": step.iteration,
                "model": model,
                "attempt": number,
                "seed": call_seed(step.seed, name, number),
            }, None

        return Outcome(name, *await first_accepted(tally, attempt, attempts), tally)

    counts, seconds = fan_out(step, len(longest_first), extend, longest_first)
    finish_fan_out(step, counts, seconds)
