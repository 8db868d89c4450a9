"""Claims about `eval/regression.sh`, with a stand-in for the harness that notes its arguments."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SCRIPT, SMOKE = ROOT / "eval" / "regression.sh", ROOT / "eval" / "smoke"

STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" '' >>"$0.calls"
while [[ $# -gt 0 ]]; do
  [[ $1 != --output_path ]] || mkdir -p "$2"
  [[ $1 != --tasks || $2 != broken ]] || exit 1
  shift
done
"""


@pytest.fixture
def harness(tmp_path: Path) -> Path:
    program = tmp_path / "harness" / "bin" / "lm-eval"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN, encoding="utf-8")
    program.chmod(0o755)
    return program


def run(harness: Path, *options: str) -> subprocess.CompletedProcess[str]:
    root = harness.parents[2]
    needed = ["--base_url=http://127.0.0.1:8001/v1/", "--model=long", "--tokenizer=some/model"]
    fixed = [f"--harness={harness.parents[1]}", f"--out={root / 'out'}"]
    command = ["bash", str(SCRIPT), *needed, *fixed, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def calls(harness: Path) -> list[dict[str, str]]:
    """Option and value of each call of the harness."""
    notes = harness.with_name("lm-eval.calls")
    if not notes.exists():
        return []
    texts = notes.read_text(encoding="utf-8").strip().split("\n\n")
    found = []
    for lines in (text.splitlines() for text in texts):
        found.append(
            {name: lines[at + 1] for at, name in enumerate(lines[:-1]) if name[:2] == "--"}
        )
    return found


def test_each_benchmark_runs_once_with_its_usual_number_of_examples(harness):
    assert run(harness).returncode == 0
    shots = {call["--tasks"]: call["--num_fewshot"] for call in calls(harness)}
    assert shots == {"mmlu": "5", "ceval-valid": "5", "arc_challenge": "25", "gsm8k": "8"}
    for call in calls(harness):
        served = dict(pair.split("=", 1) for pair in call["--model_args"].split(","))
        assert served["base_url"] == "http://127.0.0.1:8001/v1/completions"
        assert (served["model"], served["tokenizer"]) == ("long", "some/model")
        assert "--limit" not in call


def test_a_finished_task_is_not_run_again_and_a_failed_one_is(harness):
    done = run(harness, "--tasks=gsm8k,broken,mmlu")
    assert done.returncode == 1 and "broken failed" in done.stderr
    assert [call["--tasks"] for call in calls(harness)] == ["gsm8k", "broken"]
    run(harness, "--tasks=gsm8k,broken")
    assert [call["--tasks"] for call in calls(harness)][2:] == ["broken"]
    folders = [path.name for path in (harness.parents[2] / "out").iterdir() if path.name[0] != "."]
    assert folders == ["gsm8k"]


def test_a_trial_is_limited(harness):
    run(harness, "--tasks=smoke_choice", "--limit=3")
    (call,) = calls(harness)
    assert (call["--limit"], call["--num_fewshot"]) == ("3", "0")


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("--modl=x", "unknown option '--modl=x'"),
        ("--model=", "unknown option '--model='"),
        ("--limit=few", "--limit=few is no number"),
    ],
)
def test_a_wrong_option_is_one_line_and_starts_nothing(harness, option, fault):
    done = run(harness, option)
    assert done.returncode == 2 and fault in done.stderr
    assert len(done.stderr.splitlines()) == 1 and calls(harness) == []


def test_a_missing_option_is_named(harness):
    done = subprocess.run(["bash", str(SCRIPT), "--model=x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give --base_url=" in done.stderr


@pytest.mark.parametrize("name", ["smoke_choice", "smoke_generate"])
def test_the_smoke_tasks_ask_questions_that_are_there(name):
    task = yaml.safe_load((SMOKE / f"{name}.yaml").read_text(encoding="utf-8"))
    assert task["task"] == name
    path = ROOT / task["dataset_kwargs"]["data_files"]["test"]
    questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["answer"] for row in questions} == {"A", "B", "C", "D"}
    for row in questions:
        assert all(f"{{{{{field}}}}}" in task["doc_to_text"] for field in row.keys() - {"answer"})
