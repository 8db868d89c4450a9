"""Promise 11: training and serving give the same token ids for the same conversation.

Both sides are real: the tokenizers of the bundled models with their chat templates, and
LLaMA-Factory's templates. Only the texts are made up.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from self_lengthen.errors import UserError
from self_lengthen.family import ModelFamily
from self_lengthen.serving.prompt import render_messages
from self_lengthen.steps.make_sft_data import extender_pair
from self_lengthen.training import chat
from self_lengthen.training.chat import (
    default_system_prompt,
    load_tokenizer,
    serving_ids,
    stand_ins,
    training_ids,
    verify_template,
)

MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"

DEFAULT_SYSTEM = {"qwen": "You are a helpful assistant.", "llama": ""}

# Like Llama 3.1's: every conversation opens with a system turn that holds dates.
DATED = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\\n' }}"
    "{{ 'Today Date: 26 Jul 2024\\n\\n' }}{{ system }}{{ '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

TEXTS = {
    "one word": ("hello", "world"),
    "Chinese": (
        "写一篇关于江南春天的散文。",
        "江南的春天来得早。\n\n河边的柳树先绿了，然后是桃花。",
    ),
    "English": (
        "Write a story.\n\n- a lighthouse\n- a letter",
        "The keeper slept.\n\nA ship came.\n\n“Who is there?” he asked — twice.",
    ),
    "mixed": (
        "用 English 和中文写 2 段。",
        "第一段 with 123 words。\n\tSecond，  第二段！\n\n\n\n完",
    ),
    "code": (
        "Explain {{content}} and {x}.",
        "```python\nprint('{{content}}')\n```\n\n    indented",
    ),
    "opens with a sign": ("“?”", "- a list\n- of two"),
    "a symbol outside of the BMP": ("🙂", "𠮷野家 🙂🙂"),
}


@pytest.fixture(scope="module", autouse=True)
def templates() -> ModuleType:
    """LLaMA-Factory's templates; their import takes seconds and happens here."""
    with stand_ins():
        import llamafactory.data.template

        return llamafactory.data.template


def model_of(family: ModelFamily) -> str:
    return str(MODELS / family.name)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., str]:
    """A copy of a bundled model's tokenizer with another chat template."""

    def make(family: ModelFamily, chat_template: str | None = None) -> str:
        folder = tmp_path / "variant"
        folder.mkdir()
        for file in Path(model_of(family)).iterdir():
            if file.suffix in (".json", ".jinja"):
                shutil.copy(file, folder)
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template)
        return str(folder)

    return make


def both(
    family: ModelFamily, model: str, prompt: str, response: str, system: str | None = None
) -> tuple[Any, Any]:
    """Token ids of (prompt, response) as served and as trained."""
    tokenizer = load_tokenizer(model)
    served = serving_ids(tokenizer, prompt, response, system)
    trained_with = default_system_prompt(family, tokenizer) if system is None else system
    return served, training_ids(family, model, prompt, response, trained_with)


class TestSameTokens:
    @pytest.mark.parametrize("system", [None, "You write long.\n\n你写得很长。"])
    @pytest.mark.parametrize("name", TEXTS)
    def test_of_a_conversation(self, family, name, system):
        served, trained = both(family, model_of(family), *TEXTS[name], system)
        assert served == trained

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_of_any_texts(self, family, data):
        texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
        texts = texts.map(str.strip).filter(lambda text: text and "<|" not in text)
        served, trained = both(family, model_of(family), data.draw(texts), data.draw(texts))
        assert served == trained

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        lines=st.lists(st.sampled_from(["Rain fell. ", "It was\tlate.\t", " ", "", "春天。\u3000"]))
    )
    def test_of_an_extension_whatever_its_draft_ends_with(self, family, lines):
        """A chat template may trim what LLaMA-Factory trains on as it is."""
        row = {"instruction": "Write.", "initial": "\n".join(["A storm. ", *lines])}
        prompt, response = extender_pair(
            family, {**row, "response": "A storm came."}, random.Random(1)
        )
        served, trained = both(family, model_of(family), prompt, response)
        assert served == trained

    def test_the_text_is_all_there(self, family):
        prompt, response = TEXTS["mixed"]
        (asked, replied), _ = both(family, model_of(family), prompt, response)
        tokenizer = load_tokenizer(model_of(family))
        assert prompt in tokenizer.decode(asked)
        assert tokenizer.decode(replied).startswith(response)
        assert tokenizer.eos_token_id in replied[-2:]  # ChatML has a line's end behind it

    def test_llama_has_exactly_one_bos(self, llama):
        tokenizer = load_tokenizer(model_of(llama))
        for part in both(llama, model_of(llama), "hello", "world"):
            assert [ids.count(tokenizer.bos_token_id) for ids in part] == [1, 0]
            assert part[0][0] == tokenizer.bos_token_id
        assert tokenizer("hello")["input_ids"][0] == tokenizer.bos_token_id  # so it could be two

    def test_an_opened_reply_is_the_prompt_and_its_opening(self, family):
        """Also one that ends in white space, which a template would trim."""
        tokenizer = load_tokenizer(model_of(family))
        user = {"role": "user", "content": "Write."}
        opened = {"role": "assistant", "content": "Once upon \n\n"}
        prompt = render_messages(tokenizer, [user], False)
        assert render_messages(tokenizer, [user, opened], True) == prompt + "Once upon \n\n"


class TestSystemPrompt:
    def test_it_is_what_the_template_adds_by_itself(self, family):
        tokenizer = load_tokenizer(model_of(family))
        assert default_system_prompt(family, tokenizer) == DEFAULT_SYSTEM[family.name]

    def test_the_familys_marks_are_those_of_llama_factorys_template(self, family, templates):
        template = templates.TEMPLATES[family.training_template]
        (turn,) = template.format_system.apply(content="You write.")
        assert turn == f"{family.system_opening}You write.{family.system_closing}"

    def test_a_block_of_dates_is_one(self, llama, variant):
        model = variant(llama, DATED)
        assert default_system_prompt(llama, load_tokenizer(model)) == DATES
        for prompt, response in TEXTS.values():
            served, trained = both(llama, model, prompt, response)
            assert served == trained
        verify_template(llama, model, "hello", "world")

    def test_without_the_block_training_would_differ(self, llama, variant):
        model = variant(llama, DATED)
        served = serving_ids(load_tokenizer(model), "hello", "world")
        assert training_ids(llama, model, "hello", "world", "") != served


class TestVerify:
    @pytest.mark.parametrize("name", TEXTS)
    def test_the_bundled_models_pass(self, family, name):
        verify_template(family, model_of(family), *TEXTS[name])

    def test_another_default_system_prompt_is_caught(self, qwen, monkeypatch):
        """What would happen without the system column: LLaMA-Factory has a default of its own."""
        monkeypatch.setattr(chat, "default_system_prompt", lambda *_: "")
        with pytest.raises(UserError) as refusal:
            verify_template(qwen, model_of(qwen), "hello", "world")
        line = str(refusal.value)
        assert "\n" not in line
        assert line.startswith(
            f"{model_of(qwen)}: LLaMA-Factory's template qwen gives other tokens for the prompt "
            "than the tokenizer's chat template (at token "
        )
        assert line.endswith(
            "; set training_template in qwen/config.py to the template of this model"
        )

    @pytest.mark.parametrize("template", ["chatml", "llama2", "default"])
    def test_the_template_of_another_model_is_caught(self, llama, template):
        other = replace(llama, training_template=template)
        with pytest.raises(
            UserError, match=f"template {template} gives other tokens for the prompt"
        ):
            verify_template(other, model_of(llama), "hello", "world")

    def test_another_end_of_the_reply_is_caught(self, qwen, variant):
        template = Path(model_of(qwen), "chat_template.jinja").read_text()
        turn = "message['content'] + '<|im_end|>"
        assert turn in template
        model = variant(qwen, template.replace(turn, "message['content'] + ' <|im_end|>"))
        with pytest.raises(UserError, match="gives other tokens for the"):
            verify_template(qwen, model, "hello", "world")

    def test_a_template_that_changes_a_finished_conversation_is_refused(self, llama, variant):
        template = Path(model_of(llama), "chat_template.jinja").read_text()
        model = variant(llama, "{{ messages | length }}" + template)
        with pytest.raises(UserError, match="renders a finished conversation differently"):
            verify_template(llama, model, "hello", "world")

    def test_tokens_that_would_merge_over_the_seam_are_no_difference(self, llama, variant):
        """The engine goes on after the prompt's tokens, and so does training."""
        from tokenizers import pre_tokenizers

        model = variant(llama)
        tokenizer = load_tokenizer(model)
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = gpt2
        tokenizer.save_pretrained(model)
        load_tokenizer.cache_clear()
        tokenizer = load_tokenizer(model)
        apart = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n\n", "world")
        ]
        assert tokenizer("\n\nworld", add_special_tokens=False)["input_ids"] != sum(apart, [])
        verify_template(llama, model, "hello", "world")

    @pytest.mark.parametrize("trust", [False, True])
    def test_code_of_the_model_runs_only_when_asked(self, llama, variant, monkeypatch, trust):
        from transformers import AutoTokenizer

        asked = []
        original = AutoTokenizer.from_pretrained

        def recorded(model: str, **given_: Any) -> Any:
            asked.append(given_.get("trust_remote_code", False))
            return original(model, **given_)

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", recorded)
        verify_template(llama, variant(llama), "hello", "world", trust)
        assert asked == [trust, trust]
