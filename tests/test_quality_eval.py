"""Claims about `eval/quality_eval.py` and how a judge's reply is read."""

import json
import sys
from pathlib import Path

import pytest
from fakes import FakeServer, Request, Turn, error
from hypothesis import given
from hypothesis import strategies as st

from eval import quality_eval as script
from self_lengthen.errors import RunError, UserError
from self_lengthen.judging import (
    PROMPTS,
    RUBRICS,
    Fault,
    Judgement,
    judge_prompt,
    read_judgement,
)

LONGEN, LONGWRITER = RUBRICS["longen"], RUBRICS["longwriter"]
MARKS = dict(zip(LONGWRITER.dimensions, (5, 4, 3, 2, 1, 3), strict=True))
PLAIN = json.dumps({"Analysis": "Fair.", **MARKS})


def read(reply: str, finish_reason: str = "stop") -> Judgement | Fault:
    return read_judgement(LONGWRITER, reply, finish_reason)


def changed(**marks: object) -> str:
    return json.dumps({"Analysis": "Fair.", **MARKS, **marks})


class TestRubrics:
    def test_they_are_longens_seven_and_longwriters_six(self):
        assert (len(LONGEN.dimensions), LONGEN.high) == (7, 10)
        assert (len(LONGWRITER.dimensions), LONGWRITER.high) == (6, 5)

    @pytest.mark.parametrize("rubric", RUBRICS.values(), ids=lambda rubric: rubric.name)
    @pytest.mark.parametrize("language", ["zh", "en"])
    def test_the_prompt_names_every_dimension_and_the_highest_mark(self, rubric, language):
        prompt = judge_prompt(rubric, language, "THE REQUEST", "THE TEXT")
        assert prompt.count("THE REQUEST") == prompt.count("THE TEXT") == 1
        assert all(f'"{dimension}"' in prompt for dimension in rubric.dimensions)
        assert all(f"- {dimension}" in prompt for dimension in rubric.dimensions)
        assert str(rubric.high) in prompt

    @pytest.mark.parametrize("language", ["zh", "en"])
    def test_the_prompts_own_example_is_no_judgement(self, language):
        prompt = judge_prompt(LONGEN, language, "Write.", "A text.")
        assert read_judgement(LONGEN, prompt, "stop") == Fault.OUT_OF_RANGE

    @given(st.text(), st.text())
    def test_braces_in_the_judged_texts_stay_as_they_are(self, request_text, response):
        tricky = "{response} {instruction} \\1 " + response
        prompt = judge_prompt(LONGEN, "en", request_text, tricky)
        template = (PROMPTS / "judge_longen_en.md").read_text(encoding="utf-8")
        start, rest = template.rstrip("\n").split("{instruction}")
        middle, end = rest.split("{response}")
        assert prompt == start + request_text + middle + tricky + end


class TestReading:
    @pytest.mark.parametrize(
        "reply",
        [
            PLAIN,
            f"```json\n{PLAIN}\n```",
            f"```\n{PLAIN}\n```\nI hope this helps!",
            f"Here is my judgement {{as asked}}:\n{PLAIN} Thank you.",
            f"<think>Perhaps {changed(Clarity=5)}? No.</think>{PLAIN}",
            changed(**{name: str(mark) for name, mark in MARKS.items()}),
            changed(**{name: float(mark) for name, mark in MARKS.items()}),
            changed(**{name: f"{mark}/5" for name, mark in MARKS.items()}),
            changed(Relevance=" 5 "),
            json.dumps({name.upper(): mark for name, mark in MARKS.items()}),
            json.dumps({name.replace(" ", "_").lower(): mark for name, mark in MARKS.items()}),
            json.dumps({name.replace(" and ", " & "): mark for name, mark in MARKS.items()}),
            json.dumps({"Analysis": "Fair.", "scores": MARKS}),
            json.dumps([{"Analysis": "Fair.", **MARKS}]),
            f"{PLAIN}\nAgain: {PLAIN}",
            json.dumps({**MARKS, "Comments": {"Relevance": "to the point"}}, indent=4),
        ],
    )
    def test_a_reply_whose_meaning_is_plain_is_read(self, reply):
        judgement = read(reply)
        assert isinstance(judgement, Judgement)
        assert judgement.scores == MARKS and list(judgement.scores) == list(MARKS)

    @pytest.mark.parametrize(
        ("reply", "finish_reason", "fault"),
        [
            ("", "stop", Fault.EMPTY),
            (" \n", "stop", Fault.EMPTY),
            ("<think>Well.</think>", "stop", Fault.EMPTY),
            ("", "length", Fault.CUT),
            (PLAIN[:-20], "length", Fault.CUT),
            (PLAIN[:-20], "stop", Fault.NO_JSON),
            (PLAIN, "content_filter", Fault.REFUSAL),
            ("I'm sorry, but I cannot judge this text.", "stop", Fault.REFUSAL),
            ("I can’t help with that.", "stop", Fault.REFUSAL),
            ("抱歉，我无法评价这篇文章。", "stop", Fault.REFUSAL),
            ("Relevance: 5, Accuracy: 4, Coherence: 3", "stop", Fault.NO_JSON),
            ("A fine text, 5 of 5 in everything.", "stop", Fault.NO_JSON),
            ("{'Relevance': 5}", "stop", Fault.NO_JSON),
            ('{"verdict": "good"}', "stop", Fault.NO_JSON),
            (json.dumps({"Relevance": 5, "Clarity": 4}), "stop", Fault.MISSING),
            (changed(Clarity=0), "stop", Fault.OUT_OF_RANGE),
            (changed(Clarity=6), "stop", Fault.OUT_OF_RANGE),
            (changed(Clarity=-3), "stop", Fault.OUT_OF_RANGE),
            (changed(Clarity="9"), "stop", Fault.OUT_OF_RANGE),
            (changed(Clarity="4/10"), "stop", Fault.OUT_OF_RANGE),
            (changed(Clarity=3.5), "stop", Fault.NOT_WHOLE),
            (changed(Clarity="3.5"), "stop", Fault.NOT_WHOLE),
            (changed(Clarity="four"), "stop", Fault.NOT_WHOLE),
            (changed(Clarity="3-4"), "stop", Fault.NOT_WHOLE),
            (changed(Clarity="-3"), "stop", Fault.NOT_WHOLE),
            (changed(Clarity=None), "stop", Fault.NOT_WHOLE),
            (changed(Clarity=True), "stop", Fault.NOT_WHOLE),
            (changed(Clarity=[4]), "stop", Fault.NOT_WHOLE),
            (changed(Clarity={"score": 4}), "stop", Fault.NOT_WHOLE),
            (changed(Clarity=float("nan")), "stop", Fault.NOT_WHOLE),
            (changed(Clarity=float("inf")), "stop", Fault.NOT_WHOLE),
            (PLAIN[:-1] + ', "clarity": 5}', "stop", Fault.AMBIGUOUS),
            (f"{PLAIN} Or rather: {changed(Clarity=5)}", "stop", Fault.AMBIGUOUS),
            ('{"a":' * 5000, "stop", Fault.NO_JSON),
            ('{"Clarity": ' + "9" * 5000 + "}", "stop", Fault.NO_JSON),
        ],
    )
    def test_every_other_reply_is_a_fault_by_name(self, reply, finish_reason, fault):
        assert read(reply, finish_reason) == fault

    @given(st.text(alphabet='{}[]":,0123456789.-aeClrity \n`'))
    def test_noise_is_never_read_as_marks(self, reply):
        assert isinstance(read(reply), Fault)

    @given(
        st.fixed_dictionaries(dict.fromkeys(LONGEN.dimensions, st.integers(1, 10))),
        st.text(alphabet=st.characters(exclude_characters="{}<>"), max_size=50),
        st.text(alphabet=st.characters(exclude_characters="{}<>"), max_size=50),
        st.text(),
    )
    def test_marks_are_read_as_they_were_written_whatever_stands_around(
        self, marks, before, after, analysis
    ):
        reply = before + json.dumps({"Analysis": analysis, **marks}) + after
        reply = reply.replace("</think>", "")
        assert read_judgement(LONGEN, reply, "stop") == Judgement(
            marks, analysis.replace("</think>", "")
        )


ROWS = [
    {"query": f"Write {words} words.", "length": words, "response": "word " * words}
    for words in (10, 20, 30, 40)
]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The script's main with these options; what it prints on stdout and on stderr."""

    def main(server_url: str, answers: Path, *options: str) -> tuple[str, str]:
        fixed = [f"--base_url={server_url}", f"--out={tmp_path / 'out'}", "--rubric=longwriter"]
        arguments = ["quality_eval.py", str(answers), *fixed, "--model=judge", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        script.main()
        return capsys.readouterr()

    return main


def judge(request: Request) -> Turn:
    return Turn(text=PLAIN)


def contents(server: FakeServer) -> list[str]:
    return [request.body["messages"][0]["content"] for request in server.requests]


class TestJudging:
    def test_the_summary_has_longwriters_scores(self, run, answers, tmp_path):
        with FakeServer(judge) as server:
            out, _ = run(server.url, answers, "--yes")
        summary = json.loads(out)
        assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (summary["judged"], summary["coverage"]) == (4, 1.0)
        assert summary["mean"] == 3 and summary["s_q"] == 50  # (3 - 1) x 25
        assert summary["dimensions"] == MARKS
        assert summary["s_l"] == 100 and summary["overall"] == 75
        assert summary["by_language"]["en"]["s_q"] == 50
        rows = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").open()]
        assert [(row["row"], row["scores"]) for row in rows] == [(n, MARKS) for n in range(1, 5)]

    def test_longens_marks_are_means_without_an_overall_score(self, run, answers):
        marks = json.dumps(dict.fromkeys(LONGEN.dimensions, 7))
        with FakeServer(lambda _: Turn(text=marks)) as server:
            summary = json.loads(run(server.url, answers, "--yes", "--rubric=longen").out)
        assert summary["mean"] == 7 and "s_q" not in summary and "overall" not in summary

    def test_answers_without_a_required_length_have_no_overall_score(self, run, answers):
        rows = [ROWS[0], {"query": "Write.", "response": "A text."}]
        answers.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        with FakeServer(judge) as server:
            summary = json.loads(run(server.url, answers, "--yes").out)
        assert (summary["s_q"], summary["s_l"], summary["overall"]) == (50, None, None)

    def test_a_chinese_question_is_judged_with_the_chinese_prompt(self, run, answers):
        row = {"query": "写一篇短文。", "response": "短文。"}
        answers.write_text(json.dumps(row), encoding="utf-8")
        with FakeServer(judge) as server:
            run(server.url, answers, "--yes")
        assert contents(server) == [judge_prompt(LONGWRITER, "zh", row["query"], row["response"])]

    def test_an_unread_reply_is_asked_again_with_another_seed(self, run, answers):
        def at_second(request: Request) -> Turn:
            first = contents(server).count(request.body["messages"][0]["content"]) == 1
            return Turn(text="I'm sorry.") if first else Turn(text=PLAIN)

        with FakeServer(at_second) as server:
            summary = json.loads(run(server.url, answers, "--yes", "--concurrency=1").out)
        assert summary["coverage"] == 1 and len(server.requests) == 8
        assert len({request.body["seed"] for request in server.requests}) == 8
        assert summary["attempts"]["rejected"] == {"refusal": 4}

    def test_too_few_judgements_are_no_result(self, run, answers, tmp_path):
        def refuse_half(request: Request) -> Turn:
            content = request.body["messages"][0]["content"]
            if "Write 10 words" in content:
                return Turn(text="I cannot do that.")
            return (
                Turn(text=changed(Clarity=9)) if "Write 20 words" in content else Turn(text=PLAIN)
            )

        with FakeServer(refuse_half) as server:
            with pytest.raises(RunError, match="2 of 4 .* fewer than --min_coverage=0.95") as said:
                run(server.url, answers, "--yes")
            assert "refusal 1" in str(said.value) and "out_of_range 1" in str(said.value)
            assert not (tmp_path / "out" / "summary.json").exists()
            asked = len(server.requests)
            summary = json.loads(run(server.url, answers, "--yes", "--min_coverage=0.5").out)
        assert len(server.requests) == asked == 3 + 3 + 1 + 1
        assert (summary["judged"], summary["coverage"]) == (2, 0.5)
        assert summary["units"]["dropped"] == {"refusal": 1, "out_of_range": 1}

    def test_an_answer_that_does_not_fit_the_judges_context_is_left_out_and_counted(
        self, run, answers
    ):
        def full_for_40(request: Request) -> Turn:
            if "Write 40 words" in request.body["messages"][0]["content"]:
                return Turn(400, body=error(400, "the maximum context length is 8192 tokens"))
            return Turn(text=PLAIN)

        with FakeServer(full_for_40) as server:
            summary = json.loads(run(server.url, answers, "--yes", "--min_coverage=0.7").out)
        assert summary["units"]["dropped"] == {"context": 1} and summary["coverage"] == 0.75

    def test_no_judgement_at_all_is_no_result_however_low_the_threshold(self, run, answers):
        with (
            FakeServer(lambda _: Turn(text="No.")) as server,
            pytest.raises(RunError, match="0 of 4"),
        ):
            run(server.url, answers, "--yes", "--min_coverage=0.01")

    def test_what_was_judged_is_not_asked_again(self, run, answers):
        def down_for_40(request: Request) -> Turn:
            if "Write 40 words" in request.body["messages"][0]["content"]:
                return Turn(400, body=error(400, "out of credit"))
            return Turn(text=PLAIN)

        with FakeServer(down_for_40) as server, pytest.raises(RunError, match="out of credit"):
            run(server.url, answers, "--yes")
        with FakeServer(judge) as server:
            assert json.loads(run(server.url, answers, "--yes").out)["judged"] == 4
            run(server.url, answers, "--yes")
        (content,) = contents(server)
        assert "Write 40 words" in content

    def test_other_answers_are_refused_in_the_same_folder(self, run, answers):
        with FakeServer(judge) as server:
            run(server.url, answers, "--yes")
            answers.write_text(json.dumps(ROWS[0]), encoding="utf-8")
            with pytest.raises(UserError, match="was started with prompts="):
                run(server.url, answers, "--yes")


class TestEstimate:
    def test_without_yes_nothing_is_asked_and_nothing_written(self, run, answers, tmp_path):
        with FakeServer(judge) as server:
            out, err = run(server.url, answers)
        assert not server.requests and not (tmp_path / "out").exists()
        assert out == "" and "add --yes" in err

    def test_it_counts_the_prompts_and_the_price(self, run, answers):
        prompts = [judge_prompt(LONGWRITER, "en", row["query"], row["response"]) for row in ROWS]
        characters = sum(map(len, prompts))
        options = ["--price_prompt=4", "--price_reply=100", "--max_tokens=1000"]
        _, err = run("http://127.0.0.1:9/v1", answers, *options)
        assert f"4 answers for judge: {characters:,} characters" in err
        assert "at most 4,000 to write" in err
        cost = (characters / 4 * 4 + 4000 * 100) / 1e6
        assert f"at most about {cost:.2f} at these prices" in err

    def test_a_row_without_a_response_is_named_before_anything_is_asked(self, run, answers):
        answers.write_text(f'{json.dumps(ROWS[0])}\n{{"query": "Write."}}', encoding="utf-8")
        with FakeServer(judge) as server, pytest.raises(UserError, match="row 2: has no response"):
            run(server.url, answers, "--yes")
        assert not server.requests
