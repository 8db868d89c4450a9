"""Claims about `eval/length_following_eval.py` and the rows that it reads."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import hanzi, prose

from eval.length_following_eval import summarize, table
from self_lengthen.benchmark import measured_answer_of, read_answers
from self_lengthen.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "eval" / "length_following_eval.py"

ZH = {
    "id": "zh-1",
    "language": "zh",
    "range": "2000-4000",
    "type": "about",
    "constraint": "大约100字",
    "query": "写一篇大约100字的短文。",
    "response": hanzi(100),
}
EN = {
    "id": "en-1",
    "language": "en",
    "range": "4000-6000",
    "type": "above",
    "constraint": "more than 100 words",
    "query": "Write more than 100 words about a lake.",
    "response": prose(75),
}
WRITE = {
    "prompt": "Write 200 words on tea.",
    "type": "Essay",
    "length": 200,
    "response": "tea " * 100,
}


def written(folder: Path, rows: list[object], name: str = "answers.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def run_bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a Python without any installed package runs it."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class TestBarePython:
    def test_a_reader_that_has_seen_enough_ends_it_without_a_word(self, tmp_path):
        command = [sys.executable, "-I", "-S", str(SCRIPT), str(written(tmp_path, [ZH, EN]))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            process.stdout.close()
            assert process.stderr.read() == b""

    def test_it_scores_a_file_with_nothing_but_python(self, tmp_path):
        done = run_bare(str(written(tmp_path, [ZH, EN])))
        assert done.returncode == 0, done.stderr
        assert [line.split()[:4] for line in done.stdout.splitlines()[1:4]] == [
            ["overall", "2", "75.0", "99.5"],  # S_L of the 99 characters without the full stop
            ["type", "about", "1", "100.0"],
            ["type", "above", "1", "50.0"],
        ]

    def test_json_holds_the_same_numbers(self, tmp_path):
        path = written(tmp_path, [ZH, EN])
        done = run_bare(str(path), "--json")
        assert json.loads(done.stdout) == json.loads(json.dumps(summarize(read_answers(path))))

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            ({"response": None}, "has no response"),
            ({"response": 7}, "response is not a text"),
            ({"type": "exactly"}, "unknown type 'exactly'"),
            ({"type": None}, "unknown type"),
            ({"type": "below"}, "is not '小于N字' or 'less than N words'"),
            ({"constraint": "a page or two"}, "the constraint 'a page or two' is not"),
            ({"constraint": None}, "neither a constraint nor a length"),
            ({"query": " "}, "no text under query or prompt"),
        ],
    )
    def test_a_row_that_cannot_be_scored_is_one_line_with_its_number(self, tmp_path, change, fault):
        done = run_bare(str(written(tmp_path, [ZH, ZH, {**EN, **change}, ZH])))
        assert done.returncode == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "answers.jsonl: row 3: " in line and fault in line

    def test_a_missing_response_key_is_one_line_too(self, tmp_path):
        bare = {name: value for name, value in ZH.items() if name != "response"}
        done = run_bare(str(written(tmp_path, [ZH, bare])))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "row 2: has no response" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "fault"),
        [
            ([], "required: FILE"),
            (["none.jsonl"], "none.jsonl: cannot be read"),
            (["answers.txt"], "ends in .jsonl, .json, .csv"),
            (["--jso", "x.jsonl"], "--jso"),
        ],
    )
    def test_a_wrong_command_line_is_one_line(self, arguments, fault):
        done = run_bare(*arguments)
        assert done.returncode == 2 and fault in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestReading:
    def test_json_lines_a_list_and_a_table_hold_the_same_answers(self, tmp_path):
        rows = [ZH, EN]
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(ZH))
        writer.writeheader()
        writer.writerows(rows)
        files = {
            "a.jsonl": "\ufeff" + "\n\n".join(map(json.dumps, rows)),
            "a.json": json.dumps(rows),
            "lines.json": "\n".join(map(json.dumps, rows)),
            "a.csv": table.getvalue(),
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
            assert read_answers(tmp_path / name) == list(map(measured_answer_of, rows)), name

    def test_an_answer_keeps_its_line_separators_in_every_format(self, tmp_path):
        row = {**ZH, "response": "one\u2028two\x85three\r\nfour"}
        jsonl = json.dumps(row, ensure_ascii=False)
        line = ",".join(f'"{value}"' for value in row.values())
        for name, text in {"a.jsonl": jsonl, "a.csv": f"{','.join(row)}\n{line}\n"}.items():
            (tmp_path / name).write_bytes(text.encode())
            assert read_answers(tmp_path / name)[0].response == row["response"], name

    def test_a_table_takes_an_answer_of_any_length_and_no_empty_cell(self, tmp_path):
        path = tmp_path / "a.csv"
        header, start = ",".join(ZH), ",".join(f'"{ZH[name]}"' for name in list(ZH)[:-1])
        path.write_text(f'{header}\n{start},"{"长" * 200_000}"\n{start},\n', encoding="utf-8")
        with pytest.raises(UserError, match="row 2: has no response"):
            read_answers(path)

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("", "holds no row"),
            ("\n \n", "holds no row"),
            ('{"query": "cut', "row 1 is not JSON"),
            ("[1, 2]", "row 1 is not an object"),
        ],
    )
    def test_a_file_without_rows_is_refused(self, tmp_path, text, fault):
        path = tmp_path / "a.jsonl"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=fault):
            read_answers(path)

    @pytest.mark.parametrize("length", [0, -3, True, "long", [], 1e999])
    def test_a_length_that_is_no_number_of_words_is_refused(self, length):
        with pytest.raises(ValueError, match="not a number of words above 0"):
            measured_answer_of({**WRITE, "length": length})

    @pytest.mark.parametrize(
        ("question", "language"),
        [
            ("写一篇文章。", "zh"),
            ("请介绍 Kubernetes 的调度器。", "zh"),
            ("Write about the word 道 in Laozi.", "en"),
            ("2,000?", "en"),
        ],
    )
    def test_a_row_without_a_language_has_that_of_its_question(self, question, language):
        assert measured_answer_of({**WRITE, "prompt": question}).language == language


class TestSummary:
    def test_the_overall_score_is_the_mean_over_the_answers_of_each_group(self):
        half = {**ZH, "response": hanzi(60)}  # a = 80: 2 * 60/80 - 1
        summary = summarize(map(measured_answer_of, [ZH, half, half, EN]))
        assert summary["overall"]["longen"] == pytest.approx(62.5)
        assert summary["by"]["type"]["about"]["longen"] == pytest.approx(200 / 3)
        assert summary["by"]["language"]["en"]["longen"] == pytest.approx(50)
        assert summary["by"]["range"]["2000-4000"]["answers"] == 3
        assert summary["overall"]["words"] == (100 + 60 + 60 + 75) / 4

    def test_types_stand_in_longens_order(self):
        above, below = EN, {**EN, "type": "below", "constraint": "less than 100 words"}
        types = summarize(map(measured_answer_of, [below, above, ZH]))["by"]["type"]
        assert list(types) == ["about", "above", "below"]

    def test_an_empty_response_is_an_answer_that_scores_nothing(self):
        summary = summarize(map(measured_answer_of, [ZH, {**ZH, "response": " \n"}]))
        assert summary["overall"]["empty_share"] == 0.5
        assert summary["overall"]["longen"] == 50
        assert summary["overall"]["s_l"] == pytest.approx(49.7, abs=0.1)

    def test_an_answer_cut_by_max_tokens_is_counted(self):
        rows = [{**ZH, "finish_reason": "length"}, {**ZH, "finish_reason": "stop"}, ZH]
        assert summarize(map(measured_answer_of, rows))["overall"]["cut_share"] == pytest.approx(
            1 / 3
        )

    def test_longbench_write_has_s_l_alone(self):
        summary = summarize([measured_answer_of(WRITE)])
        assert summary["overall"]["s_l"] == 50 and summary["overall"]["longen"] is None
        assert summary["by"]["type"] == {} and summary["by"]["range"] == {}
        assert "-" in table(summary).splitlines()[1].split()

    def test_s_l_is_for_a_single_demanded_number(self):
        assert summarize([measured_answer_of(EN)])["overall"]["s_l"] is None

    def test_the_first_repeat_is_counted_in_its_tenth(self):
        twice = prose(50) + " " + prose(50)  # the window ends after 60 of 100 words
        at_end = " ".join([*(f"w{n}" for n in range(90)), *(f"w{n}" for n in range(10))])
        rows = [{**EN, "response": text} for text in (twice, at_end, prose(100))]
        found = summarize(map(measured_answer_of, rows))["repeats"]
        assert found["share"] == pytest.approx(2 / 3)
        assert found["first_in_tenth"] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]

    def test_the_spread_is_over_the_samples_of_one_question(self):
        rows = [{**EN, "response": prose(words)} for words in (90, 110)]
        other = [{**EN, "id": "en-2", "response": prose(100)} for _ in range(2)]
        alone = [{**EN, "id": "en-3", "response": prose(9)}]
        found = summarize(map(measured_answer_of, rows + other + alone))["spread"]
        assert found["questions"] == 2
        assert found["mean_share"] == pytest.approx((200**0.5 / 100 + 0) / 2)
