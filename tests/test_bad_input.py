"""Promise 9: a mistake is one line that names the thing and the remedy, status 2, nothing changed.

Here are run_server.sh, the step scripts, the report and run.sh on several nodes; the options of
run.sh have their table in test_options.py. Programs run in this process, except some.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from self_lengthen import report, run
from self_lengthen.errors import main_exit
from self_lengthen.serving import server
from self_lengthen.steps import common, extend_responses, initial_responses, self_instruct

ROOT = Path(__file__).resolve().parents[1]
SHELL_LIMIT_S = 300  # a busy machine
MODEL = "--base_model=model"
HELP = " (--help lists the options)"
NODES = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
LISTENING = (
    "cannot listen there (Address already in use); give another port, or none for a free one"
)


def argument(name: str, reason: str) -> str:
    return f"argument {name}: {reason}{HELP}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a model, adapters right and wrong, runs right and wrong."""
    config = {"model_type": "llama", "max_position_embeddings": 4096, "num_attention_heads": 6}
    files = {
        "model/config.json": json.dumps(config),
        "torn/config.json": '{"model_type"',
        "adapter/adapter_config.json": '{"r": 8}',
        "large/adapter_config.json": '{"r": 1000}',
        "odd/adapter_config.json": "[]",
        "empty_key": "\n",
        "run/run.json": json.dumps(
            {
                "options": {
                    "family": "llama",
                    "base_model": "model",
                    "seeds": str(ROOT / "seeds" / "llama.jsonl"),
                    "seed": 42,
                    "instruct_count": 4,
                    "max_tokens": 64,
                    "finish_ratio": 1.0,
                    "trust_remote_code": False,
                }
            }
        ),
        "run/iter_2/instructions/step.json": '{"seed": 41}',
        "run/iter_2/instructions/journal.jsonl": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def step_script(name: str, make: Callable) -> Callable[[], None]:
    from llama.config import FAMILY

    return lambda: common._main(name, FAMILY, make)


PROGRAMS: dict[str, Callable[[], None]] = {
    "run.sh": run.main,
    "run_server.sh": server.main,
    "step0": step_script("instructions", self_instruct.make),
    "step1": step_script("initial_responses", initial_responses.make),
    "step2": step_script("extended_responses", extend_responses.make),
    "report": report.main,
}
STEP = ["--results=run", "--iteration=1"]
SERVED = [*STEP, "--base_url=http://127.0.0.1:9/v1"]

# program, what is typed, the environment -> the one line
MISTAKES: list[tuple[str, list[str], dict[str, str], str]] = [
    # run_server.sh
    ("run_server.sh", [], {}, "the following arguments are required: --base_model" + HELP),
    ("run_server.sh", [MODEL, "--models=2"], {}, "unrecognized arguments: --models=2" + HELP),
    ("run_server.sh", [MODEL, "--max_model=2"], {}, "unrecognized arguments: --max_model=2" + HELP),
    ("run_server.sh", ["--base_model=./none"], {}, "--base_model=./none: no such folder"),
    (
        "run_server.sh",
        ["--base_model=empty"],
        {},
        "--base_model=empty: has no config.json; is it a model's folder?",
    ),
    (
        "run_server.sh",
        ["--base_model=torn"],
        {},
        "torn/config.json: is not JSON (Expecting ':' delimiter: line 1 column 14 (char 13))",
    ),
    ("run_server.sh", [MODEL, "--adapter=adapter"], {}, "--adapter=adapter: is not NAME=DIR"),
    ("run_server.sh", [MODEL, "--adapter==adapter"], {}, "--adapter==adapter: is not NAME=DIR"),
    ("run_server.sh", [MODEL, "--adapter=mine="], {}, "--adapter=mine=: is not NAME=DIR"),
    (
        "run_server.sh",
        [MODEL, "--adapter=mine=none"],
        {},
        "--adapter: none has no adapter_config.json with a rank r; is it a LoRA adapter?",
    ),
    (
        "run_server.sh",
        [MODEL, "--adapter=mine=odd"],
        {},
        "--adapter: odd has no adapter_config.json with a rank r; is it a LoRA adapter?",
    ),
    (
        "run_server.sh",
        [MODEL, "--adapter=mine=large"],
        {},
        "--adapter: large has rank 1000, vLLM serves up to 512",
    ),
    (
        "run_server.sh",
        [MODEL, "--adapter=base=adapter"],
        {},
        "--adapter=base=...: base is the name of the base model",
    ),
    ("run_server.sh", [MODEL, "--port={taken}"], {}, f"--port={{taken}}: {LISTENING}"),
    (
        "run_server.sh",
        [MODEL, "--controller_port={taken}"],
        {},
        f"--controller_port={{taken}}: {LISTENING}",
    ),
    (
        "run_server.sh",
        [MODEL, "--worker_port={taken}"],
        {},
        f"--worker_port={{taken}}: {LISTENING}",
    ),
    (
        "run_server.sh",
        [MODEL, "--port=70000"],
        {},
        "--port=70000: cannot listen there (there are ports 1 to 65535); give another port, or "
        "none for a free one",
    ),
    ("run_server.sh", [MODEL, "--port=-1"], {}, argument("--port", "-1 is below 0")),
    ("run_server.sh", [MODEL, "--port=x"], {}, argument("--port", "invalid int value: 'x'")),
    (
        "run_server.sh",
        [MODEL, "--tensor_parallel=2"],
        {},
        "--tensor_parallel=2: this node has no visible GPU",
    ),
    (
        "run_server.sh",
        [MODEL, "--tensor_parallel=-1"],
        {},
        argument("--tensor_parallel", "-1 is below 0"),
    ),
    (
        "run_server.sh",
        [MODEL, "--max_model_len=5000"],
        {},
        "--max_model_len=5000: {place}/model knows 4096 tokens at most",
    ),
    (
        "run_server.sh",
        [MODEL, "--startup_timeout_s=nan"],
        {},
        argument("--startup_timeout_s", "nan is below 1"),
    ),
    (
        "run_server.sh",
        [MODEL, "--host=0.0.0.0"],
        {},
        "--host=0.0.0.0: others could reach the server; give --api_key_file=FILE with a long "
        "random word in it, which requests must bring as a bearer token",
    ),
    (
        "run_server.sh",
        [MODEL, "--host=0.0.0.0", "--api_key_file=none"],
        {},
        "--api_key_file=none: cannot be read ([Errno 2] No such file or directory: 'none')",
    ),
    (
        "run_server.sh",
        [MODEL, "--host=0.0.0.0", "--api_key_file=empty_key"],
        {},
        "--api_key_file=empty_key: is empty; put a long random word into it",
    ),
    (
        "run_server.sh",
        [MODEL, "--controller=10.0.0.1:21001"],
        {},
        "--controller=10.0.0.1:21001: is not http://ADDRESS:PORT",
    ),
    (
        "run_server.sh",
        [MODEL, "--log_dir=empty_key/logs"],
        {},
        "--log_dir: {place}/empty_key/logs cannot be made (Not a directory); give another folder",
    ),
    # the step scripts
    ("step1", [], {}, "the following arguments are required: --results" + HELP),
    (
        "step1",
        ["--results=none", "--iteration=1"],
        {},
        "none/run.json is missing: start the run with run.sh, or give its --results",
    ),
    (
        "step1",
        ["--results=run", "--iteration=0"],
        {},
        argument("--iteration", "0 is below 1"),
    ),
    (
        "step1",
        [*SERVED, "--concurrency=-1"],
        {},
        argument("--concurrency", "-1 is below 0"),
    ),
    (
        "step1",
        SERVED,
        {},
        "run/iter_1/instructions is not complete: run the step that makes it first",
    ),
    (
        "step2",
        SERVED,
        {},
        "run/iter_1/initial_responses is not complete: run the step that makes it first",
    ),
    (
        "step1",
        [*SERVED, "--api_key_file=none"],
        {},
        "--api_key_file=none: cannot be read ([Errno 2] No such file or directory: 'none')",
    ),
    (
        "step0",
        ["--results=run", "--iteration=2", "--base_url=http://127.0.0.1:9/v1"],
        {},
        "run/iter_2/instructions was started with seed=41, not 42: give the same value, or "
        "--fresh to start over beside it",
    ),
    # the report
    ("report", [], {}, "the following arguments are required: results_dir" + HELP),
    # run.sh on several nodes
    (
        "run.sh",
        [MODEL],
        {"WORLD_SIZE": "2", "RANK": "2", **NODES},
        "RANK=2: with WORLD_SIZE=2 the ranks are 0 to 1",
    ),
    ("run.sh", [MODEL], {"RANK": "1"}, "RANK=1: with WORLD_SIZE=1 the ranks are 0 to 0"),
    ("run.sh", [MODEL], {"WORLD_SIZE": "x"}, "WORLD_SIZE=x: is no whole number"),
    (
        "run.sh",
        [MODEL],
        {"WORLD_SIZE": "2", "RANK": "0"},
        "MASTER_ADDR is missing: with WORLD_SIZE=2 the nodes meet at RANK 0's",
    ),
    (
        "run.sh",
        [MODEL],
        {"WORLD_SIZE": "2", **NODES},
        "RANK is missing: with WORLD_SIZE=2 each node has its own, from 0",
    ),
    (
        "run.sh",
        [MODEL],
        {"WORLD_SIZE": "2", "RANK": "0", **NODES, "MASTER_PORT": "0"},
        "MASTER_PORT=0: there are ports 1 to 65535",
    ),
    (
        "run.sh",
        [MODEL],
        {"WORLD_SIZE": "2", "RANK": "0", **NODES, "MASTER_PORT": "{taken}"},
        "MASTER_ADDR=127.0.0.1 MASTER_PORT={taken}: cannot listen there (Address already in use); "
        "give another MASTER_PORT",
    ),
    (
        "run.sh",
        [MODEL],
        {"TORCHELASTIC_RUN_ID": "7"},
        "TORCHELASTIC_RUN_ID is set: torchrun or the like starts a process for each GPU; start "
        "this once on every node, without a launcher",
    ),
    (
        "run.sh",
        [MODEL],
        {"SLURM_NNODES": "2"},
        "SLURM_NNODES=2, but this was not started by srun: `srun bash run.sh ...` starts it on "
        "every node; with WORLD_SIZE=1 this node works alone",
    ),
    (
        "run.sh",
        [MODEL, "--global_batch=3"],
        {"WORLD_SIZE": "2", "RANK": "1", **NODES},
        "--global_batch=3: is no multiple of 2 (--device_batch=1 on 2 devices); give one that is",
    ),
    (
        "run.sh",
        [MODEL, "--rendezvous_timeout_s=0"],
        {},
        argument("--rendezvous_timeout_s", "0 is below 1"),
    ),
]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_the_table_has_the_rows_that_it_promises():
    rows = [(program, *argv, *env.items()) for program, argv, env, _ in MISTAKES]
    assert len(set(rows)) == len(rows) >= 40


@pytest.mark.parametrize(
    ("program", "argv", "env", "message"),
    MISTAKES,
    ids=[f"{row[0]} {' '.join(row[1])} {' '.join(row[2])}" for row in MISTAKES],
)
def test_promise_9_a_mistake_is_one_line_and_status_2_and_changes_nothing(
    place, taken, monkeypatch, capsys, program, argv, env, message
):
    def filled(text: str) -> str:
        return text.replace("{taken}", str(taken)).replace("{place}", str(place))

    for name, value in env.items():
        monkeypatch.setenv(name, filled(value))
    monkeypatch.setattr(sys, "argv", [program, *map(filled, argv)])
    before = contents(place)
    with pytest.raises(SystemExit) as left:
        main_exit(program, PROGRAMS[program])
    said = capsys.readouterr()
    assert (left.value.code, said.out, said.err) == (2, "", f"{program}: {filled(message)}\n")
    assert contents(place) == before


@pytest.mark.parametrize(
    ("script", "argv", "env", "line"),
    [
        ("run.sh", [MODEL], {"RANK": "1"}, "RANK=1: with WORLD_SIZE=1 the ranks are 0 to 0"),
        ("run_server.sh", ["--base_model=./none"], {}, "--base_model=./none: no such folder"),
    ],
)
def test_promise_9_the_scripts_say_the_same(place, script, argv, env, line):
    before = contents(place)
    done = subprocess.run(
        ["bash", str(ROOT / script), *argv],
        capture_output=True,
        text=True,
        timeout=SHELL_LIMIT_S,
        env={**os.environ, **env},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[1:] == [f"{script}: {line}"]  # the first is setup.sh's
    assert contents(place) == before
