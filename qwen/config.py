"""The Qwen family: Chinese prompts and seeds, ChatML."""

from pathlib import Path

from self_lengthen.family import ModelFamily, NgramRule

_HERE = Path(__file__).resolve().parent

FAMILY = ModelFamily(
    name=_HERE.name,
    language="zh",
    model_types=("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"),
    prompts=_HERE / "prompts",
    seeds=_HERE.parent / "seeds" / f"{_HERE.name}.jsonl",
    instruction_label="指令{n}：",
    list_stop="\n指令4",
    judge_yes=("是",),
    judge_no=("否", "不是", "不"),
    pool_grows=True,
    # The second line is not the paper's: an English answer ends in ASCII.
    endings="。！？”)]}>）】’…`" + '.!?"',
    # The second rule is not the paper's: an English text is one single unit of the first.
    ngram_rules=(NgramRule("char", 13), NgramRule("word", 10)),
    self_talk_words=(),
    self_talk_first_lines=0,
    self_talk_last_lines=0,
    training_template="qwen",
    system_opening="<|im_start|>system\n",
    system_closing="<|im_end|>\n",
    draft_separator="\n\n",
)
