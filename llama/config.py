"""The Llama family: English prompts and seeds, Llama 3's chat template."""

from pathlib import Path

from self_lengthen.family import ModelFamily, NgramRule

_HERE = Path(__file__).resolve().parent

FAMILY = ModelFamily(
    name=_HERE.name,
    language="en",
    model_types=("llama",),
    prompts=_HERE / "prompts",
    seeds=_HERE.parent / "seeds" / f"{_HERE.name}.jsonl",
    instruction_label="Instruction {n}: ",
    list_stop="\nInstruction 4",
    judge_yes=("yes",),
    judge_no=("no",),
    pool_grows=False,
    endings=".!?\"')]}>`",
    ngram_rules=(NgramRule("word", 10),),
    self_talk_words=("revised", "revision", "response", "version", "paragraph"),
    self_talk_first_lines=2,
    self_talk_last_lines=3,
    training_template="llama3",
    system_opening="<|start_header_id|>system<|end_header_id|>\n\n",
    system_closing="<|eot_id|>",
    draft_separator="\n",
)
