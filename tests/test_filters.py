"""Claims about the checks of `self_lengthen.filters`; `python -m pytest tests/test_filters.py`."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen.errors import UserError
from self_lengthen.family import family_names, infer_family, load_family
from self_lengthen.filters import (
    Reason,
    check_response,
    instruction_key,
    read_judge,
)

QWEN = load_family("qwen")
LLAMA = load_family("llama")


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


class TestCheckResponse:
    @pytest.mark.parametrize("family", [QWEN, LLAMA], ids=lambda family: family.name)
    @pytest.mark.parametrize("finish_reason", ["stop", None, "eos", ""])
    def test_a_finished_text_is_kept_whatever_else_the_server_calls_it(self, family, finish_reason):
        assert check_response(family, "A short, finished text.\n", finish_reason) is None

    @pytest.mark.parametrize("text", ["", " \n\t\u3000"])
    def test_a_blank_text_is_empty_even_when_it_was_cut(self, text):
        assert check_response(QWEN, text, "length") == Reason.EMPTY

    def test_a_cut_text_is_truncated_even_when_it_ends_well(self):
        assert check_response(QWEN, "写完了。", "length") == Reason.TRUNCATED
        assert check_response(LLAMA, "It is done.", "length") == Reason.TRUNCATED

    def test_a_text_that_was_stopped_at_a_repetition_is_one_wherever_it_ends(self):
        assert check_response(LLAMA, "It goes on and", "repetition") == Reason.REPETITION
        assert check_response(LLAMA, "It is done.", "repetition") == Reason.REPETITION

    @pytest.mark.parametrize("ending", ",;:-，；：、—a中*_#")
    @pytest.mark.parametrize("family", [QWEN, LLAMA], ids=lambda family: family.name)
    def test_an_unfinished_ending_is_dropped(self, family, ending):
        assert check_response(family, f"Some text{ending} \n", "stop") == Reason.ENDING

    @pytest.mark.parametrize("ending", '。！？”)]}>）】’…`.!?"')
    def test_qwen_keeps_its_endings_and_ascii_ones(self, ending):
        assert check_response(QWEN, f"文字{ending}\n ", "stop") is None

    @pytest.mark.parametrize("ending", ".!?\"')]}>`")
    def test_llama_keeps_its_endings(self, ending):
        assert check_response(LLAMA, f"Some text{ending}\n ", "stop") is None

    @pytest.mark.parametrize("ending", "。”’…")
    def test_llama_drops_the_endings_of_chinese(self, ending):
        assert check_response(LLAMA, f"Some text{ending}", "stop") == Reason.ENDING

    def test_the_cheapest_reason_is_named_first(self):
        both = f"The revised text: {words(10)} {words(10)}"
        assert check_response(LLAMA, both, "length") == Reason.TRUNCATED
        assert check_response(LLAMA, both, "stop") == Reason.ENDING
        assert check_response(LLAMA, both + " .", "stop") == Reason.SELF_TALK
        assert check_response(LLAMA, both[12:] + " .", "stop") == Reason.REPETITION

    def test_reasons_read_as_plain_strings(self):
        assert f"{Reason.SELF_TALK}" == "self_talk"
        assert len({str(reason) for reason in Reason}) == len(Reason)


class TestSelfTalk:
    BODY = [f"Line {n} of the story." for n in range(8)]

    def verdict_with(self, sentence: str, line: int, family=LLAMA):
        text = "\n".join(sentence if n == line else body for n, body in enumerate(self.BODY))
        return check_response(family, text, "stop")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [(0, "self_talk"), (1, "self_talk"), (2, None), (4, None)]
        + [(5, "self_talk"), (6, "self_talk"), (7, "self_talk")],
    )
    def test_only_the_first_two_and_last_three_lines_are_searched(self, line, reason):
        assert self.verdict_with("This is my revised text.", line) == reason

    @pytest.mark.parametrize(
        "word",
        ["revised", "Revision", "RESPONSE", "versions", "paragraph", "responses", "version's"],
    )
    def test_whole_words_count_in_any_case_and_in_the_plural(self, word):
        assert self.verdict_with(f"Here is the {word} now.", 0) == Reason.SELF_TALK

    @pytest.mark.parametrize(
        "word", ["conversion", "responsev", "diversion", "responsible", "revise"]
    )
    def test_parts_of_other_words_do_not_count(self, word):
        assert self.verdict_with(f"Here is the {word} now.", 0) is None

    def test_blank_lines_around_the_text_do_not_hide_it(self):
        text = "\n\n\nHere is the revised text.\n\n" + "\n".join(self.BODY) + "\n\n\n"
        assert check_response(LLAMA, text, "stop") == Reason.SELF_TALK
        text = "\n".join(self.BODY) + "\nI hope this version helps.\n\n\n\n"
        assert check_response(LLAMA, text, "stop") == Reason.SELF_TALK

    def test_a_family_without_such_words_is_never_searched(self):
        assert self.verdict_with("This is my revised version.", 0, family=QWEN) is None

    def test_no_lines_at_an_end_means_none_and_not_all(self):
        family = replace(LLAMA, self_talk_first_lines=0, self_talk_last_lines=0)
        assert self.verdict_with("This is my revised version.", 3, family) is None


class TestReadJudge:
    @pytest.mark.parametrize(
        "reply",
        [
            "是",
            "是。",
            " 是的，适合。",
            "**是**",
            "答案：是",
            "答案：\n是。",
            "「是」",
            "是，不少于两千字",
        ]
        + ["是否适合：是"],
    )
    def test_chinese_yes(self, reply):
        assert read_judge(QWEN, reply) is True

    @pytest.mark.parametrize(
        "reply",
        [
            "否",
            "否。",
            "不是",
            "不是的。",
            "不适合。",
            "不，是短文",
            "答案：否",
            "**否**",
            "答案：不是",
        ],
    )
    def test_chinese_no(self, reply):
        assert read_judge(QWEN, reply) is False

    @pytest.mark.parametrize(
        "reply",
        ["yes", "Yes.", " yes, it does", "**Yes**", "YES!", "_yes_", "Answer: Yes", "“Yes”"]
        + ["**Answer:** yes", "Ｙｅｓ", "Yes\nNo further comment."],
    )
    def test_english_yes(self, reply):
        assert read_judge(LLAMA, reply) is True

    @pytest.mark.parametrize("reply", ["no", "No.", "**No**", "Answer: no", "NO, it is short."])
    def test_english_no(self, reply):
        assert read_judge(LLAMA, reply) is False

    @pytest.mark.parametrize(
        ("family", "reply"),
        [
            (LLAMA, reply)
            for reply in ["", "...", "yesterday", "Nothing", "Maybe yes", "noyes", "yes2"]
        ]
        + [(LLAMA, reply) for reply in ["Yes or no", "yes/no", "No or yes?", "It depends: on much"]]
        + [
            (QWEN, reply)
            for reply in ["", "。", "也许是", "是否适合？", "是或否", "是/否", "是不是呢"]
        ],
    )
    def test_anything_else_is_unclear(self, family, reply):
        assert read_judge(family, reply) is None

    @given(st.sampled_from([QWEN, LLAMA]), st.text("*_ \n\"'“”。.-#>(", max_size=6), st.data())
    def test_marks_around_the_word_change_nothing(self, family, marks, data):
        verdict = data.draw(st.booleans())
        word = data.draw(st.sampled_from(family.judge_yes if verdict else family.judge_no))
        assert read_judge(family, marks + word.upper() + marks) is verdict


class TestInstructionKey:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Write a novel.", "  write  a\nNovel"),
            ("写一篇小说。", "写一篇小说"),
            ("写一篇 小说！", "写一篇小说"),
            ("写一篇关于ＡＩ的报告", "写一篇关于ai的报告。"),
            ("用 GPU 写", "用GPU写"),
            ("Write: why?", "write： why？"),
            ("Write about the Straße...", "write about the STRASSE…"),
        ],
    )
    def test_the_same_instruction_has_the_same_key(self, one, other):
        assert instruction_key(one) == instruction_key(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Write about C.", "Write about C++."),
            ("Write a part.", "Write apart."),
            ("写小说", "写大说"),
            ("Write 1.5 pages", "Write 15 pages"),
        ],
    )
    def test_different_instructions_have_different_keys(self, one, other):
        assert instruction_key(one) != instruction_key(other)

    @given(st.text("aBß中。，！. ,!?\nＡ　é"))
    def test_a_key_is_its_own_key(self, text):
        assert instruction_key(instruction_key(text)) == instruction_key(text)

    @given(st.text("aBcd中 文", min_size=1), st.sampled_from(["", ".", "。", "！", " ?\n", "..."]))
    def test_case_and_final_marks_never_matter(self, text, mark):
        assert instruction_key(text.upper() + mark) == instruction_key(text.lower())


class TestFamily:
    def test_the_folders_with_a_config_are_the_families(self):
        assert {"qwen", "llama"} <= set(family_names())
        assert all(load_family(name).name == name for name in family_names())

    @pytest.mark.parametrize("name", ["gpt", "", "../qwen", "os", "QWEN"])
    def test_an_unknown_family_is_one_clear_line_that_names_the_known_ones(self, name):
        with pytest.raises(UserError) as error:
            load_family(name)
        assert "qwen" in str(error.value) and "llama" in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_model_type_infers_the_family(self):
        for name in family_names():
            for model_type in load_family(name).model_types:
                assert infer_family(model_type) is load_family(name)
        assert infer_family("no_such_model") is None

    def test_slots_inside_a_users_instruction_are_left_alone(self, tmp_path):
        (tmp_path / "extend.md").write_text("{other} <{instruction}> [{draft}]\n", encoding="utf-8")
        family = replace(QWEN, prompts=tmp_path)
        filled = family.extend_prompt(r"use {draft}, {instruction} and {} \1", "a {draft} \\g<0>")
        assert filled == r"{other} <use {draft}, {instruction} and {} \1> [a {draft} \g<0>]"

    def test_a_prompt_file_without_its_slot_or_missing_is_named(self, tmp_path):
        (tmp_path / "judge.md").write_text("Is it long?\n", encoding="utf-8")
        family = replace(QWEN, prompts=tmp_path)
        with pytest.raises(UserError, match=r"judge\.md.*\{instruction\}"):
            family.judge_prompt("Write.")
        with pytest.raises(UserError, match=r"extend\.md"):
            family.extend_prompt("Write.", "Text.")

    @pytest.mark.parametrize("name", family_names())
    def test_every_family_has_prompts_with_the_slots_they_need(self, name):
        family = load_family(name)
        assert family.self_instruct_prompt() == family.self_instruct_prompt().rstrip("\n") != ""
        assert "SOME REQUEST" in family.judge_prompt("SOME REQUEST")
        extend = family.extend_prompt("SOME REQUEST", "SOME DRAFT")
        assert extend.index("SOME REQUEST") < extend.index("SOME DRAFT")
