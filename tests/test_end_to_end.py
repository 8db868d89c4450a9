"""The real stack end to end on the bundled models: run.sh from seeds to adapters, both families."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from datasets import load_dataset

from self_lengthen.files import read_json, read_rows
from self_lengthen.options import DEMO
from tests.real import Script, wait_for

pytestmark = pytest.mark.real

ITERATIONS = 2
INSTRUCTIONS = 12
LEARNING_RATE = 6e-4  # fewer instructions are fewer steps: more of each than in the preset
TIMEOUT_S = 1200
STEPS = ("instructions", "initial_responses", "extended_responses", "filtered", "sft")


def start(family: str, results: Path, log: Path) -> Script:
    sizes = (f"--instruct_count={INSTRUCTIONS}", f"--max_iter={ITERATIONS}")
    options = (f"--family={family}", f"--results={results}", f"--learning_rate={LEARNING_RATE}")
    return Script("run.sh", "--demo", *options, *sizes, log=log)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module", params=["llama", "qwen"])
def finished(request, folder) -> Path:
    """A finished run; the one of llama is interrupted in step 2 first, and continued."""
    results = folder / request.param
    log = folder / f"{request.param}.log"
    if request.param == "llama":
        interrupt_in_step_2(results, log)
    run = start(request.param, results, log)
    assert run.wait(TIMEOUT_S) == 0, run.text()
    assert run.gone(), run.left()
    return results


def interrupt_in_step_2(results: Path, log: Path) -> None:
    run = start(results.name, results, log)
    journal = results / "iter_1/extended_responses/journal.jsonl"
    wait_for(
        lambda: run.process.poll() is not None or (journal.exists() and journal.stat().st_size > 0),
        TIMEOUT_S,
        "a finished extension",
    )
    run.interrupt()
    assert run.wait(90) == 130, run.text()
    assert "the same command continues" in run.text()
    assert run.gone(), run.left()
    assert not (results / "iter_2").exists()
    (results / "before.json").write_text(json.dumps(list(read_rows(journal))))


def test_every_step_of_every_iteration_is_complete_and_its_accounting_exact(finished):
    for iteration in range(1, ITERATIONS + 1):
        for step in STEPS:
            folder = finished / f"iter_{iteration}" / step
            assert (folder / "manifest.json").exists()
            units = read_json(folder / "summary.json")["units"]
            dropped = sum(units["dropped"].values())
            assert units["in"] == units["kept"] + dropped + units["failed"] + units["cut"]


def test_an_interrupted_run_continues_with_nothing_lost_and_nothing_doubled(finished):
    if finished.name != "llama":
        pytest.skip("this run was not interrupted")
    journal = list(read_rows(finished / "iter_1/extended_responses/journal.jsonl"))
    before = read_json(finished / "before.json")
    assert journal[: len(before)] == before
    assert max(Counter(record["unit"] for record in journal).values()) == 1
    units = read_json(finished / "iter_1/extended_responses/summary.json")["units"]
    assert len(journal) == units["in"] - units["failed"] - units["cut"]


def test_extensions_are_longer_than_their_initial_responses_and_carry_provenance(finished):
    rows = list(read_rows(finished / "iter_2/extended_responses/data.jsonl"))
    assert rows
    for row in rows:
        assert row["words"] > 1.2 * row["initial_words"]
        assert row["model"] == "extender-iter1"
        assert row["iteration"] == 2
        assert row["seed"] >= 0 and row["attempt"] >= 1
        assert len(row["rounds"]) == DEMO["micro_rounds"]


def test_the_generator_writes_more_after_one_macro_iteration(finished):
    means = [
        read_json(finished / f"iter_{i}/initial_responses/summary.json")["words"]["mean"]
        for i in (1, 2)
    ]
    assert means[1] > 1.2 * means[0]


def test_more_than_half_of_the_attempts_are_accepted(finished):
    for iteration in range(1, ITERATIONS + 1):
        attempts = [
            read_json(finished / f"iter_{iteration}/{step}/summary.json")["attempts"]
            for step in STEPS[:3]
        ]
        accepted = sum(attempt["accepted"] for attempt in attempts)
        assert accepted > 0.5 * sum(attempt["total"] for attempt in attempts)


def test_adapters_of_both_roles_are_continued_from_iteration_to_iteration(finished):
    for role in ("gen_sft", "ext_sft"):
        config = (finished / f"iter_2/lora/{role}.yaml").read_text()
        assert f"adapter_name_or_path: {finished}/iter_1/lora/{role}" in config
        losses = read_json(finished / f"iter_2/lora/{role}.manifest.json")["losses"]
        assert len(losses) > 1 and all(loss > 0 for loss in losses)


def test_tables_load_as_data_sets_as_they_are(finished):
    for step in STEPS[:4]:
        file = str(finished / f"iter_1/{step}/data.jsonl")
        cache = str(finished / "cache")
        table = load_dataset("json", data_files=file, split="train", cache_dir=cache)
        assert len(table) == read_json(finished / f"iter_1/{step}/manifest.json")["rows"]


def test_the_report_shows_the_measured_growth(finished):
    report = (finished / "report.md").read_text()
    for iteration in (1, 2):
        mean = read_json(finished / f"iter_{iteration}/initial_responses/summary.json")["words"][
            "mean"
        ]
        row = re.search(rf"^\| {iteration} \| initial \|.*$", report, re.MULTILINE)
        assert row and abs(float(row[0].split("|")[4].replace(",", "")) - mean) < 0.6
    assert (finished / "plots/growth.png").stat().st_size > 10_000
    assert (finished / "plots/loss.png").stat().st_size > 10_000


def test_a_finished_run_is_not_done_again(finished):
    manifest = finished / "iter_2/extended_responses/manifest.json"
    before = manifest.stat().st_mtime_ns
    again = start(finished.name, finished, finished / "again.log")
    assert again.wait(120) == 0, again.text()
    assert manifest.stat().st_mtime_ns == before
    assert "starting the server" not in again.text()


def test_a_changed_option_is_refused_by_name(finished):
    log = finished / "refused.log"
    run = Script("run.sh", "--demo", f"--family={finished.name}", f"--results={finished}", log=log)
    assert run.wait(60) == 2
    assert "--instruct_count=12, not" in run.text()
