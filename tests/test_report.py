"""The report: its figures against hand-computed ones, runs that are not finished, broken input."""

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from self_lengthen import plots
from self_lengthen.errors import UserError
from self_lengthen.report import main, write_report

REPO_ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"base_model": "models/tiny", "family": "fake"}

# {iteration: words of the accepted initial responses}
INITIAL = {1: [80, 100, 120, 200], 2: [200, 300]}
# {iteration: (words, words of the initial response) of the accepted extensions}
EXTENDED = {1: [(160, 80), (150, 100), (480, 120)], 2: [(600, 200), (600, 300)]}
PROMPT = {"instructions": 100, "initial_responses": 200, "extended_responses": 700}
COMPLETION = {"instructions": 50, "initial_responses": 1000, "extended_responses": 1950}


def write_lines(path: Path, entries: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def write_step(run_dir: Path, iteration: int, step: str, units: dict, **more: dict) -> None:
    nothing = {"in": 0, "kept": 0, "dropped": {}, "failed": 0, "cut": 0}
    tokens = {"prompt": PROMPT.get(step, 0), "completion": COMPLETION.get(step, 0)}
    summary = {"step": step, "iteration": iteration, "units": nothing | units, "tokens": tokens}
    folder = run_dir / f"iter_{iteration}" / step
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary | {"seconds": 1.0, "words": {}} | more))


def attempts(accepted: int, **rejected: int) -> dict:
    total = accepted + sum(rejected.values())
    return {"total": total, "accepted": accepted, "rejected": rejected}


def write_journal(run_dir: Path, iteration: int, step: str, rows: list[dict]) -> Path:
    """Accepted rows, and one unit that was not accepted."""
    entries = [{"unit": n, "kept": True, "reason": None, "row": row} for n, row in enumerate(rows)]
    entries.insert(1, {"unit": len(rows), "kept": False, "reason": "repetition", "row": None})
    path = run_dir / f"iter_{iteration}" / step / "journal.jsonl"
    write_lines(path, entries)
    return path


def extended_row(words: int, initial_words: int) -> dict:
    texts = {"instruction": "Say it.", "response": f"Long {words}.", "initial": f"{initial_words}."}
    return {"words": words, "initial_words": initial_words, **texts}


def write_texts(run_dir: Path, iteration: int) -> None:
    """The steps 0 to 2 of one iteration."""
    write_step(run_dir, iteration, "instructions", {"in": 2, "kept": 2}, attempts=attempts(2))
    kept = len(EXTENDED[iteration])
    dropped = {"drop_short": len(INITIAL[iteration]) - kept, "repetition": 1}
    write_step(
        run_dir,
        iteration,
        "initial_responses",
        {"in": len(INITIAL[iteration]) + 1, "kept": kept, "dropped": dropped},
        attempts=attempts(len(INITIAL[iteration]), ending=1, repetition=3),
        idle_share=0.125,
    )
    rows = [{"words": words, "response": "Text."} for words in INITIAL[iteration]]
    write_journal(run_dir, iteration, "initial_responses", rows)
    units = {"in": kept + 1, "kept": kept, "dropped": {"repetition": 1}}
    write_step(
        run_dir, iteration, "extended_responses", units, attempts=attempts(kept, not_longer=2)
    )
    rows = [extended_row(*pair) for pair in EXTENDED[iteration]]
    write_journal(run_dir, iteration, "extended_responses", rows)


def write_training(run_dir: Path, iteration: int) -> None:
    """The steps 3 and 4, the trainer's logs and the phases of one iteration."""
    write_step(run_dir, iteration, "filtered", {"in": 3, "kept": 2, "dropped": {"drop_short": 1}})
    write_step(run_dir, iteration, "sft", {"in": 2, "kept": 2})
    for name, loss in {"gen_sft": 2.0, "ext_sft": 1.5}.items():
        log = [{"current_steps": n, "total_steps": 10, "loss": loss / n} for n in (1, 2, 4)]
        folder = run_dir / f"iter_{iteration}" / "lora" / name
        write_lines(folder / "trainer_log.jsonl", [*log, {"current_steps": 4, "total_steps": 10}])
        folder.with_name(f"{name}.manifest.json").write_text("{}")
    with (run_dir / "phases.jsonl").open("a") as phases:
        for phase, seconds in [("serve", 40.0), ("step1", 10.0), ("step1", 2.5), ("train", 1200.0)]:
            entry = {"iteration": iteration, "phase": phase, "seconds": seconds}
            phases.write(json.dumps(entry) + "\n")


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A run that has written nothing but its options."""
    run = {"options": OPTIONS, "versions": {}, "git_commit": "0", "started": "2025-01-01T00:00:00"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    return tmp_path


@pytest.fixture
def finished(started: Path) -> Path:
    """A run with two complete iterations."""
    for iteration in (1, 2):
        write_texts(started, iteration)
        write_training(started, iteration)
    return started


def report_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def cells(report: str, section: str, *first: str) -> list[str]:
    """The cells after `first` in the only table row of `section` that begins with them."""
    body = report.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    (found,) = [row[len(first) :] for row in rows if row[: len(first)] == list(first)]
    return found


def verdict_of(report: str) -> str:
    return report.split("\n\n")[1]


def test_title_names_model_and_family(finished):
    assert report_of(finished).startswith("# Self-Lengthen: models/tiny (family fake)\n")


def test_growth_table_has_the_hand_computed_figures(finished):
    report = report_of(finished)
    # Columns: n, mean, median, quartiles, longest, extension factor, ratio of means, growth.
    # 80 + 100 + 120 + 200 = 500 in 4 texts.
    initial = ["4", "125", "110", "95 to 140", "200", "–", "–", "1.00x"]
    assert cells(report, "Growth", "1", "initial") == initial
    # 790 words in 3 texts; (2 + 1.5 + 4) / 3 = 2.5; 790 / 300 = 2.63.
    extended = ["3", "263", "160", "155 to 320", "480", "2.50x", "2.63x", "–"]
    assert cells(report, "Growth", "1", "extended") == extended
    initial = ["2", "250", "250", "225 to 275", "300", "–", "–", "2.00x"]
    assert cells(report, "Growth", "2", "initial") == initial
    extended = ["2", "600", "600", "600 to 600", "600", "2.50x", "2.40x", "–"]
    assert cells(report, "Growth", "2", "extended") == extended


def test_acceptance_table_has_units_and_attempts(finished):
    report = report_of(finished)
    # 4 of 4 + 1 + 3 attempts
    units, tries = ["5", "3", "drop_short 1, repetition 1", "0", "0"], ["8", "50.0 %"]
    expected = [*units, *tries, "repetition 3, ending 1"]
    assert cells(report, "Acceptance", "1", "initial_responses") == expected
    expected = ["3", "2", "drop_short 1", "0", "0", "–", "–", "–"]
    assert cells(report, "Acceptance", "1", "filtered") == expected
    assert "does not add up" not in report


def test_cost_adds_up_the_phases_of_a_resumed_run(finished):
    # serve, step1 = 10 + 2.5, train, total
    assert cells(report_of(finished), "Cost", "1", "40") == ["12.5", "1,200", "1,252"]


def test_cost_divides_tokens_by_accepted_extended_words(finished):
    report = report_of(finished)
    assert cells(report, "Cost", "1", "initial_responses") == ["200", "1,000", "–", "–", "12.5 %"]
    # 3,000 completion and 4,000 tokens in all, over 790 and over 1,200 words
    assert cells(report, "Cost", "1", "all of these") == ["1,000", "3,000", "3.80", "5.06", "–"]
    assert cells(report, "Cost", "2", "all of these") == ["1,000", "3,000", "2.50", "3.33", "–"]


def test_loss_table_has_first_and_last_loss_with_their_steps(finished):
    report = report_of(finished)
    assert cells(report, "Training loss", "Generator", "2") == ["1", "2.000", "4", "0.500"]
    assert cells(report, "Training loss", "Extender", "2") == ["1", "1.500", "4", "0.375"]


def test_training_that_started_again_replaces_its_later_losses():
    steps = [(5, 3.0), (10, 2.0), (15, 1.0), (5, 2.5), (10, 1.5)]
    log = [{"current_steps": step, "loss": loss} for step, loss in steps]
    assert plots.loss_by_step(log) == {5: 2.5, 10: 1.5}


def test_verdict_of_a_growing_run_is_healthy(finished):
    # Attempts accepted: 2 + 4 + 3 of 2 + 8 + 5, then 2 + 2 + 2 of 2 + 6 + 4.
    assert verdict_of(report_of(finished)) == (
        "**Healthy:** the Generator grows from iteration to iteration (125 → 250 words on average, "
        "2.00x first to last); each of 5 extensions is at least 1.2x; "
        "55.6 % of 27 attempts were accepted."
    )


@pytest.mark.parametrize(("words", "verb"), [(130, "hardly grows"), (60, "shrinks")])
def test_verdict_says_where_the_generator_stalls(finished, words, verb):
    write_journal(finished, 2, "initial_responses", [{"words": words}])
    start = f"**Not healthy:** the Generator {verb} from iteration 1 to 2 (125 → {words} words"
    assert verdict_of(report_of(finished)).startswith(start)


def test_verdict_counts_extensions_that_are_too_short(finished):
    write_journal(
        finished, 2, "extended_responses", [extended_row(119, 100), extended_row(120, 100)]
    )
    start = "**Not healthy:** 1 of 5 extensions are below 1.2x; the Generator grows"
    assert verdict_of(report_of(finished)).startswith(start)


def test_verdict_names_an_iteration_without_extensions(finished):
    write_journal(finished, 2, "extended_responses", [])
    report = report_of(finished)
    assert verdict_of(report).startswith(
        "**Not healthy:** no extension was accepted in iteration 2;"
    )
    assert "From iteration 1" in report


def test_verdict_names_the_step_with_few_accepted_attempts(finished):
    few = attempts(1, repetition=19)
    write_step(finished, 2, "initial_responses", {"in": 1, "kept": 1}, attempts=few)
    assert "only 5.0 % in `initial_responses` of iteration 2" in verdict_of(report_of(finished))
    assert verdict_of(report_of(finished)).startswith("**Not healthy:**")


def test_lost_units_show_as_accounting_that_does_not_add_up(finished):
    units = {"in": 9, "kept": 4, "dropped": {"drop_short": 2}, "failed": 0, "cut": 1}
    write_step(finished, 2, "filtered", units)
    report = report_of(finished)
    claim = "accounting does not add up in `filtered` of iteration 2: 9 units in, 7 kept + dropped"
    assert claim in verdict_of(report)
    assert claim in report.split("## Acceptance")[1]


def test_run_without_an_iteration_says_so_and_shows_no_number(started):
    report = report_of(started)
    assert verdict_of(report).startswith(
        "**Too early to tell:** no macro-iteration is complete yet; "
    )
    assert "Complete macro-iterations: 0." in report
    assert "|" not in report and "![" not in report
    assert not (started / "plots").exists()


def test_iteration_under_way_counts_as_far_as_it_got(started):
    write_texts(started, 1)
    report = report_of(started)
    assert verdict_of(report).startswith(
        "**Too early to tell:** no macro-iteration is complete yet"
    )
    done = "`instructions`, `initial_responses`, `extended_responses`"
    assert f"Iteration 1 is not complete; it has finished {done}." in report
    assert cells(report, "Growth", "1", "initial")[1] == "125"
    assert "![growth](plots/growth.png)" in report
    assert "![loss]" not in report and not (started / "plots" / "loss.png").exists()


def test_training_that_was_tried_but_left_no_manifest_is_not_complete(finished):
    (finished / "iter_2" / "lora" / "ext_sft.manifest.json").unlink()
    assert "Complete macro-iterations: 1. Iteration 2 is not complete" in report_of(finished)


def test_step_without_a_summary_is_absent_though_its_journal_grows(finished):
    write_step(finished, 3, "instructions", {"in": 2, "kept": 2}, attempts=attempts(2))
    write_journal(finished, 3, "initial_responses", [{"words": 7777}])
    report = report_of(finished)
    assert "7,777" not in report
    assert "Complete macro-iterations: 2. Iteration 3 is not complete; it has finished" in report
    assert verdict_of(report).startswith("**Healthy:**")


def test_torn_last_lines_are_ignored(finished, caplog):
    whole = report_of(finished)
    journals = [
        finished / "iter_2" / f"{step}_responses/journal.jsonl" for step in ("initial", "extended")
    ]
    trainer_log = finished / "iter_2/lora/gen_sft/trainer_log.jsonl"
    for path in (finished / "phases.jsonl", trainer_log, *journals):
        path.write_bytes(path.read_bytes() + b'{"iteration": 2, "unit": 9, "kept": true, "ro\xe4')
    assert report_of(finished) == whole
    assert not caplog.records


def test_broken_line_inside_a_file_is_left_out_with_a_warning(finished, caplog):
    path = finished / "phases.jsonl"
    path.write_text('{"iteration": 1, "ph\n' + path.read_text())
    report_of(finished)
    assert caplog.messages == [f"{path}:1: not JSON, left out of the report"]


def test_samples_are_the_last_extensions_by_length_with_their_drafts(finished):
    rows = [extended_row(words, 100) for words in (900, 500, 300, 700, 400)]
    rows[0]["response"] = "palavers " * 900
    write_journal(finished, 2, "extended_responses", rows)
    samples = report_of(finished).split("## Sample texts")[1].split("## How")[0]
    headings = [line for line in samples.splitlines() if line.startswith("###")]
    assert headings == [
        "### Shorter quarter: 100 → 400 words (4.00x)",
        "### Median: 100 → 500 words (5.00x)",
        "### Longest: 100 → 900 words (9.00x)",
    ]
    assert "Long 400." in samples and "Long 300." not in samples
    # 800 characters hold 88 times the 9 of "palavers " and a cut one.
    assert "palavers … (900 words in all)" in samples and samples.count("palavers") == 88


def test_markup_in_a_sample_stays_inside_its_code_block(finished):
    rows = [extended_row(300, 100)]
    rows[0]["response"] = "# Title\n```python\nprint()\n```"
    write_journal(finished, 2, "extended_responses", rows)
    assert "````\n# Title\n```python\nprint()\n```\n````" in report_of(finished)


@pytest.mark.parametrize("name", ["growth", "loss"])
def test_plots_are_png_files_of_full_size(finished, name):
    write_report(finished)
    png = (finished / "plots" / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 15_000
    assert struct.unpack(">II", png[16:24]) == (1200, 750)


def test_a_report_that_cannot_be_written_leaves_the_former_one(finished, monkeypatch):
    former = report_of(finished)

    def fail(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    write_journal(finished, 2, "initial_responses", [{"words": 999}])
    monkeypatch.setattr(sys, "argv", ["report", str(finished)])
    with pytest.raises(UserError, match="No space left on device"):
        main()
    assert (finished / "report.md").read_text(encoding="utf-8") == former


def test_reading_keeps_lengths_in_memory_not_texts(started):
    write_step(started, 1, "initial_responses", {"in": 2000, "kept": 2000})
    rows = [{"words": words, "response": "x" * 5000} for words in range(1, 2001)]
    journal = write_journal(started, 1, "initial_responses", rows)
    del rows
    tracemalloc.start()
    words = plots.read_iterations(started)[0].words["initial"]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words.sum() == 2_001_000
    assert peak_bytes < journal.stat().st_size / 20


def run_command(folder: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    command = [sys.executable, "-m", "self_lengthen.report", str(folder)]
    answer = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, timeout=120)
    return answer.returncode, answer.stdout, answer.stderr


def test_command_prints_the_path_of_the_report(finished):
    assert run_command(finished) == (0, f"{finished / 'report.md'}\n", "")


def test_folder_without_a_run_is_refused_in_one_line(tmp_path):
    line = f"{tmp_path}: has no run.json; give the folder of a run, results/<run>"
    assert run_command(tmp_path) == (2, "", f"report: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_broken_json_file_is_named(finished):
    path = finished / "iter_1" / "sft" / "summary.json"
    path.write_text("{")
    with pytest.raises(UserError, match=f"{path}: not JSON"):
        write_report(finished)
