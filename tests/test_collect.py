"""Claims about collection: rounds after the last iteration, and the data set of all texts."""

import hashlib
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from fakes import Call, FakeChat, FakeModel, FakeServer, Request, Turn, said
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen import collect, collect_data
from self_lengthen.errors import RunError, UserError
from self_lengthen.family import REPO_ROOT, ModelFamily, load_family
from self_lengthen.files import Row, read_json, read_rows, write_json
from self_lengthen.repeats import Repeats
from self_lengthen.runfolder import EXTENDED, INITIAL, INSTRUCTIONS, RunFolder, StepFolder
from self_lengthen.steps import common, initial_responses, self_instruct

LAST = 2  # macro-iterations of the finished run


def give(step: StepFolder, rows: list[Row]) -> None:
    """A finished step with these rows."""
    units = {"in": len(rows), "kept": len(rows), "dropped": {}, "failed": 0, "cut": 0}
    step.finish(iter(rows), {"units": units})


def text_row(name: str, query: str, response: str, iteration: int = 1, model: str = "base") -> Row:
    words = {"words": len(response.split())}
    asked = {"id": name, "instruction": query, "response": response, "iteration": iteration}
    return {**asked, **words, "model": model, "attempt": 1}


def finished_run(new_run: Callable[..., RunFolder], family: ModelFamily, **options) -> RunFolder:
    """Two macro-iterations with trained adapters, of one text each."""
    run = new_run(family, **{"instruct_count": 6, **options})
    for number in range(1, LAST + 1):
        asked = f"Write about subject {number}."
        row = text_row(f"i{number}-q0", asked, f"answer {number}.", number)
        give(run.step(number, INSTRUCTIONS), [{"id": row["id"], "instruction": asked, "words": 4}])
        give(run.step(number, INITIAL), [row])
        give(run.step(number, EXTENDED), [{**row, "response": f"longer answer {number}."}])
        write_json(run.adapter(number, "gen_sft.manifest.json"), {"role": "gen_sft"})
    return run


class Served:
    """In the place of the server's process: it runs until the block is left."""

    def poll(self) -> None:
        return None

    def stop(self) -> None:
        pass

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def script_of(family: ModelFamily) -> Callable[[Request], Turn]:
    """A FakeModel behind a socket."""
    model = FakeModel(family)

    def turn(request: Request) -> Turn:
        messages = request.body["messages"]
        opened = messages[1]["content"] if len(messages) > 1 else ""
        call = Call(
            request.body["model"], messages[0]["content"], None, request.body["seed"], opened
        )
        answer = model(call)
        reply = said(answer) if isinstance(answer, str) else answer
        return Turn(text=reply.text, finish_reason=reply.finish_reason)

    return turn


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., collect.Collection]:
    """A collection of a run on the bundled model whose server is a fake one."""

    def make(run: RunFolder, server: FakeServer | None, *argv: str) -> collect.Collection:
        url = server.url if server else ""
        starting = lambda self, iteration: (Served(), url)  # noqa: E731
        monkeypatch.setattr(collect.Collection, "_start_servers", starting)
        return collect.Collection(collect.read_wanted([f"--results={run.path}", *argv]))

    return make


def run_options(family: str) -> dict[str, object]:
    """What run.json holds besides what the steps of the tests need."""
    names = ("tensor_parallel", "port", "controller_port", "worker_port")
    serving = dict.fromkeys(names, 0) | {"tensor_parallel": 1, "max_model_len": 4096}
    model = {"base_model": str(REPO_ROOT / "demo/models" / family), "max_iter": LAST}
    return {**serving, **model, "concurrency": 4, "server_timeout_s": 60.0} | {
        "rendezvous_timeout_s": 60.0
    }


class TestRounds:
    def test_rounds_are_collected_until_there_are_enough_responses(
        self, new_run, collecting, llama
    ):
        run = finished_run(new_run, llama, **run_options("llama"))
        with FakeServer(script_of(llama)) as server:
            collection = collecting(run, server, "--total_count=15")
            collection.go()
            asked = len(server.requests)
            collecting(run, server, "--total_count=15").go()
            assert len(server.requests) == asked  # there are enough
        kept = [len(list(read_rows(run.round(n).step(INITIAL).data))) for n in run.rounds()]
        assert len(kept) >= 2 and sum(kept[:-1]) < 15 <= sum(kept) == collection.count()
        rows = [row for n in run.rounds() for row in read_rows(run.round(n).step(INITIAL).data)]
        assert {row["model"] for row in rows} == {f"generator-iter{LAST}"}
        assert {row["iteration"] for row in rows} == {LAST + 1}
        assert len({row["id"] for row in rows}) == len(rows)
        assert run.iterations() == [1, 2]  # no round counts as an iteration

    def test_an_unfinished_round_is_finished_as_it_was_begun(self, new_run, collecting, llama):
        run = finished_run(new_run, llama, **run_options("llama"))
        run.round(1).begin(LAST + 1, 3)
        with FakeServer(script_of(llama)) as server:
            collecting(run, server, "--total_count=1", "--instruct_count=5").go()
        assert read_json(run.round(1).step(INSTRUCTIONS).path / "summary.json")["units"]["in"] == 3

    def test_a_round_that_keeps_nothing_ends_the_collection(self, new_run, collecting, llama):
        run = finished_run(new_run, llama, **run_options("llama"))
        with (
            FakeServer(lambda request: Turn(text="No.")) as server,
            pytest.raises(RunError, match="collect_1: kept no response; see the summary.json"),
        ):
            collecting(run, server, "--total_count=1").go()

    def test_the_same_server_and_steps_as_run_sh_only_with_rounds(
        self, new_run, collecting, llama, capsys
    ):
        run = finished_run(new_run, llama, **run_options("llama"))
        collecting(run, None, "--total_count=9").dry_run()
        server, note, *steps = capsys.readouterr().out.splitlines()
        assert f"--adapter=generator-iter{LAST}={run.adapter(LAST, 'gen_sft')}" in server
        assert f"--log_dir={run.path}/collect_1/logs/server" in server
        assert note.startswith("# round 1, and more until 9 responses")
        assert [Path(line.split()[1]).name for line in steps] == [
            "step0_self_instruct.py",
            "step1_gen_initial_responses.py",
        ]
        assert all("--round=1" in line and "--iteration" not in line for line in steps)
        assert not run.rounds()

    def test_instructions_of_all_earlier_iterations_and_rounds_are_not_taken_again(
        self, new_run, llama, monkeypatch
    ):
        run = finished_run(new_run, llama, max_iter=LAST)
        run.round(1).begin(LAST + 1, 1)
        old = {"id": "c1-q0", "instruction": "Write about subject 9.", "words": 4}
        give(run.round(1).step(INSTRUCTIONS), [old])
        run.round(2).begin(LAST + 1, 1)
        step = common.StepRun(INSTRUCTIONS, llama, run, LAST + 1, "http://fake/v1", 1, round=2)
        offers = iter(
            ["Write about subject 1.", "Write about subject 9.", "Write about wide rivers."]
        )
        chat = FakeChat(lambda call: next(offers) if call.opened_with else "yes")
        monkeypatch.setattr(common, "Endpoint", lambda url, key: chat)
        self_instruct.make(step)
        (row,) = read_rows(step.folder.data)
        assert (row["instruction"], row["id"], row["attempt"]) == (
            "Write about wide rivers.",
            "c2-q000000",
            3,
        )

    def test_rounds_have_luck_of_their_own(self, new_run, llama):
        run = finished_run(new_run, llama)
        for number in (1, 2):
            run.round(number).begin(LAST + 1, 1)
        steps = [common.StepRun(INITIAL, llama, run, LAST + 1, "", 1, round=n) for n in (0, 1, 2)]
        assert len({step.rng("drop_short").random() for step in steps}) == 3

    def test_a_step_reads_the_instructions_of_its_round(self, new_run, llama, monkeypatch):
        run = finished_run(new_run, llama)
        run.round(1).begin(LAST + 1, 1)
        give(run.round(1).step(INSTRUCTIONS), [{"id": "c1-q0", "instruction": "Write of rain."}])
        chat = FakeChat(FakeModel(llama))
        monkeypatch.setattr(common, "Endpoint", lambda url, key: chat)
        initial_responses.make(
            common.StepRun(INITIAL, llama, run, LAST + 1, "http://x/v1", 1, round=1)
        )
        assert {call.user for call in chat.calls} == {"Write of rain."}
        assert {call.model for call in chat.calls} == {f"generator-iter{LAST}"}


class TestMistakes:
    def refusal(self, *argv: str) -> str:
        with pytest.raises(UserError) as refusal:
            collect.read_wanted(argv)
        return str(refusal.value)

    def test_each_is_one_line_that_names_the_remedy(self, new_run, llama, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run = new_run(llama, **run_options("llama"))
        results = f"--results={run.path}"
        other = REPO_ROOT / "demo/models/qwen"
        assert "--total_count" in self.refusal(results)
        assert self.refusal("--total_count=5").startswith("results: holds no run; start one with")
        assert "run.json is missing" in self.refusal(f"--results={tmp_path}", "--total_count=5")
        assert "no Generator is trained yet" in self.refusal(results, "--total_count=5")
        assert f"is a run of {run.options['base_model']}" in self.refusal(
            results, "--total_count=5", f"--base_model={other}"
        )
        write_json(run.adapter(1, "gen_sft.manifest.json"), {})
        assert self.refusal(results, "--total_count=5", "--max_iter=3").endswith(
            "has trained iterations [1]"
        )

    def test_the_newest_run_is_the_one_started_last(self, new_run, llama, tmp_path):
        new_run(llama, "old")
        newer = new_run(llama, "newer")
        assert collect.newest_run(tmp_path).path == newer.path


def written(run: RunFolder) -> tuple[list[Row], Row, list[str]]:
    said: list[str] = []
    summary = collect_data.write_data_set(run, run.path / "data", said.append)
    return list(read_rows(run.path / "data/long.jsonl")), summary, said


class TestDataSet:
    def with_round(self, run: RunFolder) -> RunFolder:
        rows = [
            text_row("c1-r0", "Write about rain.", "rain falls.", 3, "generator-iter2"),
            text_row("c1-r1", "Write about rain.", "rain falls.", 3, "generator-iter2"),
            text_row("c1-r2", "Write about subject 1.", "answer 1.", 3, "generator-iter2"),
        ]
        give(run.round(1).step(INITIAL), rows)
        return run

    def test_it_holds_the_texts_of_all_iterations_and_rounds_each_pair_once(self, new_run, llama):
        run = self.with_round(finished_run(new_run, llama))
        rows, summary, said = written(run)
        assert [(row["source"], row["iteration"], row["response"]) for row in rows] == [
            ("initial", 1, "answer 1."),
            ("extended", 1, "longer answer 1."),
            ("initial", 2, "answer 2."),
            ("extended", 2, "longer answer 2."),
            ("collected", 3, "rain falls."),
        ]
        assert rows[-1] == {
            "id": "c1-r0",
            "query": "Write about rain.",
            "response": "rain falls.",
            "words": 2,
            "source": "collected",
            "iteration": 3,
            "role": "generator",
            "model": "generator-iter2",
        }
        assert rows[1]["role"] == "extender"
        assert summary["rows"] == 5 and not said
        counted = {(p["source"], p["iteration"]): p for p in summary["sources"]}
        assert counted["collected", 3]["rows"] == 1
        assert counted["collected", 3]["duplicates"] == 2
        assert counted["extended", 2]["words_mean"] == 2.0
        assert read_json(run.path / "data/summary.json") == summary

    def test_what_is_not_finished_is_left_out_and_named(self, new_run, llama):
        run = finished_run(new_run, llama)
        (run.step(2, EXTENDED).path / "manifest.json").unlink()
        rows, _, said = written(run)
        assert len(rows) == 3
        assert said == [f"left out, as it is not finished: {run.step(2, EXTENDED).path}"]

    def test_a_run_without_a_finished_step_is_refused(self, new_run, llama):
        with pytest.raises(UserError, match="no step is finished yet"):
            written(new_run(llama))

    @pytest.mark.parametrize("name", ["llama", "qwen"])
    def test_the_folder_loads_as_a_hugging_face_data_set(self, new_run, tmp_path, name):
        run = self.with_round(finished_run(new_run, load_family(name)))
        rows, _, _ = written(run)
        cache = str(tmp_path / "cache")
        read = datasets.load_dataset(str(run.path / "data"), split="train", cache_dir=cache)
        assert read.to_list() == rows
        card = (run.path / "data/README.md").read_text()
        assert f"language:\n- {'en' if name == 'llama' else 'zh'}\n" in card
        assert "| collected | 3 | 1 | 2.0 |" in card

    def test_llama_factory_reads_both_exports_as_the_same_conversations(self, new_run, llama):
        run = finished_run(new_run, llama)
        rows, _, _ = written(run)
        folder = run.path / "data/llamafactory"
        assert conversations(folder, "long_alpaca") == conversations(folder, "long_sharegpt")
        assert conversations(folder, "long_alpaca") == [
            (row["query"], row["response"]) for row in rows
        ]

    def test_it_runs_as_written_with_nothing_but_python(self, new_run, llama):
        run = finished_run(new_run, llama)
        script = [sys.executable, "-S", "-s", str(REPO_ROOT / "collect_data.py")]
        done = subprocess.run(
            [*script, f"--results={run.path}"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        *table, last = done.stdout.splitlines()
        assert last == str(run.path / "data/long.jsonl")
        assert table[0].split() == [
            "source",
            "iteration",
            "rows",
            "duplicates",
            *["words", "on", "average"],
        ]
        assert table[-1].split() == ["all", "4", "0"]

    def test_memory_does_not_grow_with_the_rows(self, new_run, llama):
        """Peaks beside the two bit maps, which have a fixed size."""
        peaks = []
        for count in (500, 10_000):
            run = new_run(llama, f"run{count}")
            texts = [text_row(f"q{n}", f"Write {n}.", f"answer {n} " * 9) for n in range(count)]
            give(run.step(1, INITIAL), texts)
            del texts
            tracemalloc.start()
            written_rows = collect_data.write_data_set(run, run.path / "data", print)["rows"]
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert written_rows == count
        assert peaks[1] - peaks[0] < 100_000


def conversations(folder: Path, name: str) -> list[tuple[str, str]]:
    """(user, assistant) of each row as LLaMA-Factory converts it."""
    from self_lengthen.training.chat import stand_ins

    with stand_ins():
        from llamafactory.data.loader import _get_merged_dataset
        from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    data = DataArguments(dataset_dir=str(folder), template="llama3")
    model = ModelArguments(model_name_or_path="x", cache_dir=str(folder / "cache"))
    training = Seq2SeqTrainingArguments(output_dir=str(folder / "out"), use_cpu=True)
    merged = _get_merged_dataset([name], model, data, training, stage="sft")
    return [(row["_prompt"][0]["content"], row["_response"][0]["content"]) for row in merged]


@given(st.lists(st.integers(0, 9)))
def test_a_repeat_is_what_came_before_in_the_same_order(numbers):
    digests = [hashlib.blake2b(bytes([n]), digest_size=16).digest() for n in numbers]
    repeats = Repeats(digests, bits=8)
    expected = [n in numbers[:place] for place, n in enumerate(numbers)]
    assert [repeats.seen(digest) for digest in digests] == expected


def test_two_digests_on_the_same_bit_are_still_told_apart():
    first, second = b"\x01" * 16, b"\x01" * 8 + b"\x02" * 8
    repeats = Repeats([first, second])
    assert [repeats.seen(d) for d in (first, second, first)] == [False, False, True]
