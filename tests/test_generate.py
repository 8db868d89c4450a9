"""Claims about `eval/generate.py` against a scripted server on a real socket."""

import json
import sys
from pathlib import Path

import pytest
from fakes import FakeServer, Request, Turn, error

from eval import generate as script
from self_lengthen.benchmark import read_answers
from self_lengthen.errors import RunError, UserError

GRID = Path(__file__).resolve().parent.parent / "eval" / "prompts" / "longen_own.jsonl"
ROWS = [
    {"query": "写大约10字。", "type": "about", "constraint": "大约10字", "response": None},
    {"query": "Write 5-9 words.", "type": "range", "constraint": "5-9 words", "kind": "technical"},
    {"prompt": "Write 20 words on tea.", "length": 20},
]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The script's main with these options; the path that it prints."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def main(server: FakeServer, benchmark: Path | str, *options: str) -> Path:
        fixed = [
            f"--base_url={server.url}",
            f"--benchmark={benchmark}",
            f"--out={tmp_path / 'out'}",
        ]
        monkeypatch.setattr(sys, "argv", ["generate.py", *fixed, *options])
        script.main()
        return Path(capsys.readouterr().out.strip())

    return main


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def echo(request: Request) -> Turn:
    return Turn(text=f"An answer to: {request.body['messages'][0]['content']}")


def bodies(server: FakeServer) -> list[dict]:
    return [request.body for request in server.requests]


class TestAnswers:
    def test_each_row_keeps_its_fields_and_gets_its_response(self, run, benchmark):
        with FakeServer(echo) as server:
            answered = lines(run(server, benchmark, "--model=long"))
        assert [row["response"] for row in answered] == [
            f"An answer to: {row.get('query') or row['prompt']}" for row in ROWS
        ]
        for number, (row, before) in enumerate(zip(answered, ROWS, strict=True), 1):
            kept = {name: row[name] for name in before if name != "response"}
            assert kept.items() <= before.items()
            assert (row["id"], row["sample"], row["model"]) == (str(number), 0, "long")

    def test_the_scorer_reads_what_is_written(self, run, benchmark):
        with FakeServer(echo) as server:
            answers = read_answers(run(server, benchmark))
        assert [answer.required_words for answer in answers] == [10, None, 20]
        assert [answer.demand is None for answer in answers] == [False, False, True]

    def test_a_cut_answer_says_so(self, run, benchmark):
        with FakeServer(lambda _: Turn(text="Half of", finish_reason="length")) as server:
            assert all(answer.cut for answer in read_answers(run(server, benchmark)))

    def test_samples_of_a_question_share_its_id_and_differ_in_seed(self, run, benchmark):
        with FakeServer(echo) as server:
            answered = lines(run(server, benchmark, "--samples=3"))
        assert [(row["id"], row["sample"]) for row in answered] == [
            (id, sample) for id in "123" for sample in range(3)
        ]
        assert len({row["seed"] for row in answered}) == 9
        assert {row["seed"] for row in answered} == {body["seed"] for body in bodies(server)}

    def test_our_own_prompts_are_a_benchmark(self):
        assert script.read_benchmark(str(GRID), None) == lines(GRID)


class TestRequest:
    def test_the_defaults_are_longwriters_and_no_more_is_sent(self, run, benchmark):
        with FakeServer(echo) as server:
            run(server, benchmark)
        for body in bodies(server):
            names = {"model", "messages", "max_tokens", "seed", "temperature"}
            assert body.keys() == names | {"repetition_penalty"}
            assert (body["temperature"], body["repetition_penalty"]) == (0.5, 1.1)
            assert (body["model"], body["max_tokens"]) == ("base", 16384)
        assert {r.headers["authorization"] for r in server.requests} == {"Bearer none"}

    def test_a_foreign_server_gets_no_field_that_it_does_not_know(self, run, benchmark):
        with FakeServer(echo) as server:
            run(server, benchmark, "--repetition_penalty=1")
        names = {"model", "messages", "max_tokens", "seed", "temperature"}
        assert all(body.keys() == names for body in bodies(server))

    def test_what_is_asked_for_is_sent(self, run, benchmark):
        options = ["--top_p=0.8", "--top_k=20", "--temperature=0.1", "--max_tokens=99"]
        with FakeServer(echo) as server:
            run(server, benchmark, *options)
        for body in bodies(server):
            sent = body["top_p"], body["top_k"], body["temperature"], body["max_tokens"]
            assert sent == (0.8, 20, 0.1, 99)

    def test_the_key_comes_from_the_option_before_the_environment(
        self, run, benchmark, monkeypatch
    ):
        monkeypatch.setenv("OPENAI_API_KEY", "of-the-shell")
        with FakeServer(echo) as server:
            run(server, benchmark)
            run(server, benchmark, "--fresh", "--api_key=given")
        keys = [request.headers["authorization"] for request in server.requests]
        assert keys == ["Bearer of-the-shell"] * 3 + ["Bearer given"] * 3


class TestResume:
    def test_what_failed_is_asked_again_and_nothing_else(self, run, benchmark):
        def refuse_tea(request: Request) -> Turn:
            content = request.body["messages"][0]["content"]
            return Turn(400, body=error(400, "no tea")) if "tea" in content else echo(request)

        with FakeServer(refuse_tea) as server, pytest.raises(RunError, match="no tea"):
            run(server, benchmark)
        with FakeServer(echo) as server:
            answered = lines(run(server, benchmark))
        assert [body["messages"][0]["content"] for body in bodies(server)] == [ROWS[2]["prompt"]]
        assert [row["id"] for row in answered] == ["1", "2", "3"]

    def test_a_single_failure_among_many_leaves_no_half_file(self, run, benchmark, tmp_path):
        questions = [json.dumps({"query": f"Write on subject {number}."}) for number in range(20)]
        benchmark.write_text("\n".join(questions), encoding="utf-8")

        def refuse_one(request: Request) -> Turn:
            content = request.body["messages"][0]["content"]
            return Turn(400) if "subject 7." in content else echo(request)

        with (
            FakeServer(refuse_one) as server,
            pytest.raises(RunError, match="1 of 20 answers failed"),
        ):
            run(server, benchmark)
        assert not (tmp_path / "out" / "data.jsonl").exists()

    def test_a_finished_folder_is_not_asked_for_again(self, run, benchmark):
        with FakeServer(echo) as server:
            first = run(server, benchmark).read_bytes()
            assert run(server, benchmark).read_bytes() == first
        assert len(server.requests) == 3

    @pytest.mark.parametrize(
        "option", ["--model=other", "--temperature=0.6", "--samples=2", "--seed=1", "--top_p=0.9"]
    )
    def test_another_option_is_refused_by_name(self, run, benchmark, option):
        name = option[2:].partition("=")[0]
        with FakeServer(echo) as server:
            before = run(server, benchmark).read_bytes()
            with pytest.raises(UserError, match=f"was started with {name}="):
                run(server, benchmark, option)
            assert run(server, benchmark).read_bytes() == before
        assert len(server.requests) == 3

    def test_other_questions_are_refused_until_a_fresh_start(self, run, benchmark, tmp_path):
        with FakeServer(echo) as server:
            run(server, benchmark)
            benchmark.write_text('{"query": "Another one."}', encoding="utf-8")
            with pytest.raises(UserError, match="was started with questions="):
                run(server, benchmark)
            assert len(lines(run(server, benchmark, "--fresh"))) == 1
        assert len(lines(tmp_path / "out.old-1" / "data.jsonl")) == 3


class TestDataSets:
    def test_a_folder_is_read_as_a_data_set(self, run, tmp_path):
        folder = tmp_path / "set"
        folder.mkdir()
        questions = [{"prompt": f"Write {words} words.", "length": words} for words in (100, 200)]
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
        with FakeServer(echo) as server:
            answered = lines(run(server, folder))
        assert [(row["id"], row["length"]) for row in answered] == [("1", 100), ("2", 200)]

    def test_a_split_is_asked_for_when_none_is_called_test(self, tmp_path):
        for split in ("train", "validation"):
            row = json.dumps({"query": f"Write for {split}."})
            (tmp_path / f"{split}.jsonl").write_text(row, encoding="utf-8")
        with pytest.raises(UserError, match="give --split, one of train, validation"):
            script.read_benchmark(str(tmp_path), None)
        with pytest.raises(UserError, match="give --split"):
            script.read_benchmark(str(tmp_path), "dev")
        (row,) = script.read_benchmark(str(tmp_path), "validation")
        assert row["query"] == "Write for validation."


class TestMistakes:
    @pytest.mark.parametrize(
        ("rows", "fault"),
        [
            (['{"query": "One."}', '{"query": " "}'], "row 2: has no text under query or prompt"),
            (['{"query": "One."}', "no json"], "row 2 is not JSON"),
            (['{"id": "a", "query": "One."}', '{"id": "a", "query": "Two."}'], "same id"),
        ],
    )
    def test_a_benchmark_that_cannot_be_asked_changes_nothing(
        self, run, benchmark, tmp_path, rows, fault
    ):
        benchmark.write_text("\n".join(rows), encoding="utf-8")
        with FakeServer(echo) as server, pytest.raises(UserError, match=fault):
            run(server, benchmark)
        assert not server.requests and not (tmp_path / "out").exists()

    def test_a_folder_with_other_files_is_left_alone(self, run, benchmark, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
        with FakeServer(echo) as server, pytest.raises(UserError, match="holds other files"):
            run(server, benchmark)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]

    def test_a_missing_benchmark_is_named(self, tmp_path):
        with pytest.raises(UserError, match="none.jsonl"):
            script.read_benchmark(str(tmp_path / "none.jsonl"), None)
        with pytest.raises(UserError, match="--benchmark=.*is no file, and no data set"):
            script.read_benchmark(str(tmp_path / "none"), None)
