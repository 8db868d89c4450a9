"""Claims about run.sh's options: a mistake is one line and exit status 2, and changes nothing.

Promises 2 and 9 of DESIGN. The lines are compared to the letter; a run that is not refused ends in
a stand-in of the pipeline. Some rows go through `bash run.sh` in a process of its own.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from self_lengthen import model, options, run
from self_lengthen.devices import Gpu
from self_lengthen.errors import UserError, main_exit
from self_lengthen.options import DEMO, FREE_TO_CHANGE, demo_preset, read_options
from self_lengthen.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
SHELL_LIMIT_S = 300  # a busy machine
CONTEXT_TOKENS = 4096
HEADS = 6
MODEL = "--base_model=model"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models and seed files, right and wrong ones."""
    shape = {"max_position_embeddings": CONTEXT_TOKENS, "num_attention_heads": HEADS}
    configs = {
        "model": json.dumps({"model_type": "llama", **shape}),
        "spaced model": json.dumps({"model_type": "llama", **shape}),
        "stranger": json.dumps({"model_type": "gpt2", **shape}),
        "untyped": json.dumps(shape),
        "listed": "[]",
        "torn": '{"model_type"',
    }
    for name, text in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "empty").mkdir()
    seeds = {"good": '{"prompt": "one"}', "torn": '{"prompt": ', "bare": '{"text": "two"}'}
    for name, line in seeds.items():
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "first"}}\n{line}\n')
    (tmp_path / "single.jsonl").write_text('{"prompt": "first"}\n{"prompt": "first"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str]]:
    """Start run.sh in this process, with a pipeline that does nothing: exit status and stderr."""
    monkeypatch.setattr(run.Pipeline, "go", lambda pipeline: None)
    monkeypatch.setattr(run, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=15))

    def started(*argv: str) -> tuple[int, str]:
        monkeypatch.setattr(run.sys, "argv", ["run.py", *argv])
        with pytest.raises(SystemExit) as left:
            main_exit("run.sh", run.main)
        return left.value.code, capsys.readouterr().err

    return started


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder; files with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def line(name: str, reason: str) -> str:
    return f"argument {name}: {reason} (--help lists the options)"


LISTENING = (
    "cannot listen there (Address already in use); give another port, or none for a free one"
)
SEED_REMEDY = 'each line is one {"prompt": "..."}'

# What is typed -> the one line. {place} and {taken} are the working folder and the port in use.
MISTAKES = {
    "no model": (
        [],
        "--base_model is missing: a folder, a name on the hub, or use --demo",
    ),
    "no such folder": (
        ["--base_model=/no/such/path"],
        "--base_model=/no/such/path: no such folder",
    ),
    "a file as model": (
        ["--base_model=./good.jsonl"],
        "--base_model=./good.jsonl: no such folder",
    ),
    "no config.json": (
        ["--base_model=empty"],
        "--base_model=empty: has no config.json; is it a model's folder?",
    ),
    "torn config.json": (
        ["--base_model=torn"],
        "torn/config.json: is not JSON (Expecting ':' delimiter: line 1 column 14 (char 13))",
    ),
    "no model_type": (
        ["--base_model=untyped"],
        "untyped/config.json: has no model_type; is it a language model's folder?",
    ),
    "config.json is a list": (
        ["--base_model=listed"],
        "listed/config.json: has no model_type; is it a language model's folder?",
    ),
    "unknown model_type": (
        ["--base_model=stranger"],
        "{place}/stranger: no family lists model_type 'gpt2'; give --family=llama or qwen, "
        "or add a family (README.md)",
    ),
    "unknown family": (
        [MODEL, "--family=gpt"],
        line("--family", "invalid choice: 'gpt' (choose from 'llama', 'qwen')"),
    ),
    "a model's path with a space": (
        ["--base_model=spaced model"],
        "--base_model=spaced model: LLaMA-Factory takes no path with a space in it",
    ),
    "a run's path with a space": (
        [MODEL, "--results=my runs/one"],
        "--results={place}/my runs/one: LLaMA-Factory takes no path with a space in it",
    ),
    "unknown option": (
        [MODEL, "--max_iters=2"],
        "unrecognized arguments: --max_iters=2 (--help lists the options)",
    ),
    "abbreviated option": (
        [MODEL, "--max_it=2"],
        "unrecognized arguments: --max_it=2 (--help lists the options)",
    ),
    "no iteration": (
        [MODEL, "--max_iter=0"],
        line("--max_iter", "0 is below 1"),
    ),
    "no instruction": (
        [MODEL, "--instruct_count=0"],
        line("--instruct_count", "0 is below 1"),
    ),
    "a count that is no number": (
        [MODEL, "--instruct_count=x"],
        line("--instruct_count", "invalid int value: 'x'"),
    ),
    "no share": (
        [MODEL, "--finish_ratio=0"],
        line("--finish_ratio", "0 is not in (0, 1]"),
    ),
    "more than all": (
        [MODEL, "--finish_ratio=1.5"],
        line("--finish_ratio", "1.5 is not in (0, 1]"),
    ),
    "a rate that is no number": (
        [MODEL, "--learning_rate=nan"],
        line("--learning_rate", "nan is not a finite number above 0"),
    ),
    "no epoch": (
        [MODEL, "--epochs=0"],
        line("--epochs", "0 is not a finite number above 0"),
    ),
    "a time without end": (
        [MODEL, "--training_timeout_s=nan"],
        line("--training_timeout_s", "nan is below 1"),
    ),
    "warm-up over the end": (
        [MODEL, "--warmup_ratio=1.5"],
        line("--warmup_ratio", "1.5 is not in [0, 1)"),
    ),
    "no seed file": (
        [MODEL, "--seeds=none.jsonl"],
        "{place}/none.jsonl: cannot read the seed file ([Errno 2] No such file or directory: "
        "'{place}/none.jsonl'): give --seeds=FILE",
    ),
    "torn seed line": (
        [MODEL, "--seeds=torn.jsonl"],
        "{place}/torn.jsonl:2: is not JSON (Expecting value: line 1 column 12 (char 11)): "
        + SEED_REMEDY,
    ),
    "seed without prompt": (
        [MODEL, "--seeds=bare.jsonl"],
        '{place}/bare.jsonl:2: has no text under "prompt": ' + SEED_REMEDY,
    ),
    "one seed": (
        [MODEL, "--seeds=single.jsonl"],
        "{place}/single.jsonl: holds 1 different seed instructions, at least 2 are needed",
    ),
    "port in use": (
        [MODEL, "--port={taken}"],
        f"--port={{taken}}: {LISTENING}",
    ),
    "controller's port in use": (
        [MODEL, "--controller_port={taken}"],
        f"--controller_port={{taken}}: {LISTENING}",
    ),
    "worker's port in use": (
        [MODEL, "--worker_port={taken}"],
        f"--worker_port={{taken}}: {LISTENING}",
    ),
    "no such port": (
        [MODEL, "--port=70000"],
        "--port=70000: cannot listen there (there are ports 1 to 65535); give another port, or "
        "none for a free one",
    ),
    "tensor parallelism without GPU": (
        [MODEL, "--tensor_parallel=2"],
        "--tensor_parallel=2: this node has no visible GPU",
    ),
    "longer than the model": (
        [MODEL, "--max_model_len=8192"],
        "--max_model_len=8192: {place}/model knows 4096 tokens at most",
    ),
    "rank over the limit": (
        [MODEL, "--lora_rank=1000"],
        "--lora_rank=1000: vLLM serves up to 512",
    ),
    "uneven batch": (
        [MODEL, "--global_batch=6", "--device_batch=4"],
        "--global_batch=6: is no multiple of 4 (--device_batch=4 on 1 devices); give one that is",
    ),
    "a run below a file": (
        [MODEL, "--results=good.jsonl/run"],
        "--results={place}/good.jsonl/run: cannot be made or written (Not a directory); give "
        "another folder",
    ),
    "a file as run": (
        [MODEL, "--results=good.jsonl"],
        "--results={place}/good.jsonl: cannot be made or written (Not a directory); give another "
        "folder",
    ),
}
THROUGH_THE_SHELL = ("no model", "abbreviated option", "torn seed line", "port in use")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2_and_changes_nothing(mistake, place, taken, start):
    argv, message = MISTAKES[mistake]
    before = contents(place)
    status, err = start(*(part.replace("{taken}", str(taken)) for part in argv))
    expected = message.replace("{place}", str(place)).replace("{taken}", str(taken))
    assert (status, err) == (2, f"run.sh: {expected}\n")
    assert contents(place) == before


@pytest.mark.parametrize("mistake", THROUGH_THE_SHELL)
def test_run_sh_says_the_same(mistake, place, taken):
    argv, message = MISTAKES[mistake]
    before = contents(place)
    command = ["bash", str(ROOT / "run.sh")]
    command += [part.replace("{taken}", str(taken)) for part in argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SHELL_LIMIT_S)
    setup_line, *said = done.stderr.splitlines()
    expected = message.replace("{place}", str(place)).replace("{taken}", str(taken))
    assert (done.returncode, done.stdout) == (2, "")
    assert setup_line.startswith("setup: ")
    assert said == [f"run.sh: {expected}"]
    assert contents(place) == before


def test_help_lists_every_option_on_stdout(capsys):
    with pytest.raises(SystemExit) as left:
        read_options(["--help"])
    said = capsys.readouterr()
    assert (left.value.code, said.err) == (0, "")
    assert all(f"--{name}" in said.out for name in (*DEMO, *FREE_TO_CHANGE - {"gpus"}))


def test_two_services_cannot_have_one_port(place, start):
    [free] = free_ports("127.0.0.1", 1)
    before = contents(place)
    status, err = start(MODEL, f"--port={free}", f"--controller_port={free}")
    assert (status, err.count("\n")) == (2, 1)
    assert f"={free}: {LISTENING}" in err
    assert contents(place) == before


def test_attention_heads_that_cannot_be_dealt_out_are_refused(place, start, monkeypatch):
    monkeypatch.setattr(options, "visible_gpus", lambda: [Gpu(str(n), 81920) for n in range(4)])
    status, err = start(MODEL, "--tensor_parallel=4")
    assert status == 2
    assert err == (
        "run.sh: --tensor_parallel=4: the model's 6 attention heads cannot be dealt out to 4 GPUs; "
        "give a divisor\n"
    )


class TestHub:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (LocalEntryNotFoundError("no connection\nand no copy"), "no connection"),
            (OSError("disk full"), "disk full"),
            (TimeoutError(), "TimeoutError()"),
        ],
    )
    def test_a_name_that_cannot_be_reached_is_refused(
        self, place, start, monkeypatch, error, reason
    ):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        before = contents(place)
        status, err = start("--base_model=someone/model")
        assert (status, err) == (
            2,
            "run.sh: --base_model=someone/model: neither a folder nor a model that the hub gives "
            f"({reason})\n",
        )
        assert contents(place) == before

    def test_weights_that_cannot_be_fetched_are_refused(self, place, start, monkeypatch):
        def fail(*_, **__):
            raise OSError("disk full")

        config = str(place / "model" / "config.json")
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: config)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        before = contents(place)
        assert start("--base_model=someone/model") == (
            2,
            "run.sh: --base_model=someone/model: neither a folder nor a model that the hub gives "
            "(disk full)\n",
        )
        assert contents(place) == before

    def test_the_chat_template_is_fetched_with_the_weights(self, monkeypatch):
        asked = {}
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda _, **how: asked.update(how)
        )
        model.local_base_model("someone/model")
        files = (
            "config.json",
            "model-00001-of-00002.safetensors",
            "chat_template.jinja",
            "merges.txt",
        )
        assert all(any(Path(file).match(p) for p in asked["allow_patterns"]) for file in files)
        assert not any(Path("pytorch_model.bin").match(p) for p in asked["allow_patterns"])


class TestRunFolder:
    """Promise 2: a changed option never mixes with old data."""

    ARGV = (MODEL, "--results=run", "--instruct_count=5")

    @pytest.fixture(autouse=True)
    def _first_run(self, place: Path, start) -> None:
        assert start(*self.ARGV)[0] == 0
        (place / "run" / "iter_1").mkdir()

    def test_the_same_command_continues(self, place, start):
        before = contents(place / "run")
        assert start(*self.ARGV)[0] == 0
        assert contents(place / "run") == before

    @pytest.mark.parametrize(
        ("option", "old", "new"),
        [
            ("instruct_count", 5, 6),
            ("seed", 42, 43),
            ("finish_ratio", 1.0, 0.9),
            ("attempts", 20, 19),
            ("learning_rate", 1e-4, 1e-3),
            ("max_model_len", 4096, 2048),
            ("family", "llama", "qwen"),
        ],
    )
    def test_a_changed_option_is_named(self, place, start, option, old, new):
        before = contents(place)
        argv = [part for part in self.ARGV if not part.startswith(f"--{option}=")]
        # Another family would bring other seeds, which are refused as well.
        argv.append(f"--seeds={ROOT}/seeds/llama.jsonl")
        status, err = start(*argv, f"--{option}={new}")
        assert status == 2
        assert err == (
            f"run.sh: {place}/run was started with --{option}={old}, not {new}: give the same "
            "value, another --results, or --fresh to set the old run aside\n"
        )
        assert contents(place) == before

    @pytest.mark.parametrize(
        "change",
        [
            "--max_iter=9",
            "--concurrency=3",
            "--server_timeout_s=5",
            "--training_timeout_s=5",
            "--side_by_side=no",
            "--tensor_parallel=1",
        ],
    )
    def test_what_the_data_do_not_depend_on_may_change(self, place, start, change):
        before = contents(place / "run")
        assert start(*self.ARGV, change)[0] == 0
        assert contents(place / "run") == before

    def test_a_port_may_change(self, place, start):
        [free] = free_ports("127.0.0.1", 1)
        assert start(*self.ARGV, f"--port={free}")[0] == 0

    def test_fresh_sets_the_old_run_aside_and_deletes_nothing(self, place, start):
        before = contents(place / "run")
        for number in (1, 2):
            assert start(*self.ARGV, "--fresh")[0] == 0
            assert contents(place / f"run.old-{number}") == before
            before = contents(place / "run")
            assert list(before) == ["run.json"]

    def test_fresh_takes_other_options(self, place, start):
        assert start(MODEL, "--results=run", "--instruct_count=6", "--fresh")[0] == 0
        saved = json.loads((place / "run" / "run.json").read_text())["options"]
        assert saved["instruct_count"] == 6

    @pytest.mark.parametrize("extra", [(), ("--fresh",)])
    def test_a_folder_with_other_files_is_left_alone(self, place, start, extra):
        (place / "mine").mkdir()
        (place / "mine" / "thesis.tex").write_text("years of work")
        before = contents(place)
        status, err = start(MODEL, "--results=mine", *extra)
        assert (status, err) == (
            2,
            f"run.sh: --results={place}/mine: holds other files; give an empty or new folder\n",
        )
        assert contents(place) == before

    def test_an_empty_folder_is_taken(self, place, start):
        (place / "new").mkdir()
        assert start(MODEL, "--results=new")[0] == 0
        assert list(contents(place / "new")) == ["run.json"]


class TestDemo:
    """--demo is a preset of ordinary options, nothing else."""

    @pytest.mark.parametrize("family", ["llama", "qwen"])
    def test_it_is_the_same_as_its_options_spelled_out(self, place, family):
        spelled = [f"--{name}={value}" for name, value in demo_preset(family).items()]
        spelled += [f"--results=results/demo-{family}"]
        demo, ordinary = read_options(["--demo", f"--family={family}"]), read_options(spelled)
        assert demo.options == ordinary.options
        assert (demo.results, demo.family) == (ordinary.results, ordinary.family)
        assert (demo.training, demo.groups) == (ordinary.training, ordinary.groups)

    @pytest.mark.parametrize("name", [*DEMO, "learning_rate"])
    def test_every_one_of_its_options_can_be_overridden(self, place, name):
        halved = name in ("device_batch", "finish_ratio")
        preset = demo_preset("llama")[name]
        value = type(preset)(preset / 2 if halved else 2 * preset)
        given = read_options(["--demo", f"--{name}={value}"]).options
        plain = read_options(["--demo"]).options
        assert given == {**plain, name: value}

    def test_its_model_and_family_can_be_overridden(self, place):
        assert read_options(["--demo", MODEL]).options["base_model"] == str(place / "model")
        other = read_options(["--demo", "--family=qwen"])
        assert read_options(["--demo"]).options["base_model"] == str(ROOT / "demo/models/llama")
        assert other.options["base_model"] == str(ROOT / "demo" / "models" / "qwen")
        assert other.results == place / "results" / "demo-qwen"

    def test_its_mistakes_are_mistakes(self, place):
        with pytest.raises(UserError, match="no multiple of 4"):
            read_options(["--demo", "--global_batch=6"])


def test_a_family_can_be_given_for_a_model_that_none_lists(place):
    plan = read_options(["--base_model=stranger", "--family=qwen"])
    assert plan.family.name == "qwen"
    assert plan.options["seeds"] == str(ROOT / "seeds" / "qwen.jsonl")


def test_the_context_is_bounded_however_long_the_models_is(place):
    config = {"model_type": "llama", "max_position_embeddings": 131072}
    (place / "model" / "config.json").write_text(json.dumps(config))
    assert read_options([MODEL]).options["max_model_len"] == 32768
    assert read_options([MODEL, "--max_model_len=131072"]).options["max_model_len"] == 131072
