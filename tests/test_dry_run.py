"""Claims about --dry_run: it prints every command line of the run, and writes nothing.

Promise 10 (loopback, no remote code unless asked) is looked at here too. GPUs are lines of a
listing that stands in for nvidia-smi's.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from self_lengthen import devices, run
from self_lengthen.errors import UserError
from self_lengthen.serving import server
from self_lengthen.serving.plan import plan_server
from self_lengthen.training.trainer import TRAINER

ROOT = Path(__file__).resolve().parents[1]
GPU_MIB = 81559
CONTEXT_TOKENS = 131072
SHELL_LIMIT_S = 300  # a busy machine


@dataclass
class Command:
    """One printed command line."""

    argv: list[str]
    env: dict[str, str]

    @property
    def program(self) -> str:
        """The module after -m, or the name of the first script."""
        if "-m" in self.argv:
            return self.argv[self.argv.index("-m") + 1].rpartition(".")[2]
        return next(Path(a).name for a in self.argv if Path(a).name not in ("bash", "python"))

    def values(self, option: str) -> list[str]:
        return [a.partition("=")[2] for a in self.argv if a.partition("=")[0] == option]

    def value(self, option: str) -> str:
        (value,) = self.values(option)
        return value


@dataclass
class Iteration:
    heading: str
    commands: list[Command] = field(default_factory=list)

    def named(self, program: str) -> list[Command]:
        return [command for command in self.commands if command.program == program]

    @property
    def workers(self) -> list[Command]:
        return self.named("worker")

    @property
    def training(self) -> list[Command]:
        return self.named("trainer")


def parse(printed: str) -> list[Iteration]:
    iterations: list[Iteration] = []
    for line in printed.splitlines():
        if line.startswith("# iteration") and ": serve " in line:
            iterations.append(Iteration(line))
        elif not line.startswith("#"):
            words = shlex.split(line)
            start = next(i for i, word in enumerate(words) if "=" not in word)
            env = dict(word.split("=", 1) for word in words[:start])
            iterations[-1].commands.append(Command(words[start:], env))
    return iterations


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model of 64 heads whose weights fit anywhere."""
    (tmp_path / "model").mkdir()
    config = {"model_type": "qwen2", "max_position_embeddings": CONTEXT_TOKENS}
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**config, "num_attention_heads": 64})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this a machine with so many GPUs."""

    def with_gpus(count: int) -> None:
        listing = "".join(f"{n}, GPU-{n}{n}{n}, {GPU_MIB}\\n" for n in range(count))
        monkeypatch.setattr(devices, "QUERY", ("printf", "%b", listing))
        cuda = SimpleNamespace(version=lambda package: "2.13.0+cu130")
        monkeypatch.setattr(devices, "importlib", SimpleNamespace(metadata=cuda))

    return with_gpus


@pytest.fixture
def dry_run(place, monkeypatch, capsys) -> Callable[..., list[Iteration]]:
    def printed(*argv: str) -> list[Iteration]:
        command = ["run.py", "--base_model=model", "--max_iter=3", "--dry_run", *argv]
        monkeypatch.setattr(sys, "argv", command)
        run.main()
        return parse(capsys.readouterr().out)

    return printed


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "groups"),
    [
        (1, 1, ["0"]),
        (2, 1, ["0", "1"]),
        (2, 2, ["0,1"]),
        (8, 1, list("01234567")),
        (8, 2, ["0,1", "2,3", "4,5", "6,7"]),
        (8, 8, ["0,1,2,3,4,5,6,7"]),
    ],
)
def test_every_group_of_gpus_has_one_worker(machine, dry_run, gpus, tensor_parallel, groups):
    machine(gpus)
    for iteration in dry_run(f"--tensor_parallel={tensor_parallel}"):
        assert [w.env["CUDA_VISIBLE_DEVICES"] for w in iteration.workers] == groups
        for worker in iteration.workers:
            assert worker.value("--tensor_parallel") == str(tensor_parallel)
            assert "--cpu" not in worker.argv
        ports = [c.value("--port") for c in iteration.commands if c.values("--controller")]
        assert len(set(ports)) == len(ports) == len(groups) + 1


@pytest.mark.parametrize(
    ("visible", "argv", "groups"),
    [
        ("2,3", [], ["2", "3"]),
        ("2,3", ["--tensor_parallel=2"], ["2,3"]),
        ("3,GPU-000", ["--tensor_parallel=2"], ["3,GPU-000"]),
        ("5", [], ["5"]),
    ],
)
def test_only_visible_gpus_are_used(machine, dry_run, monkeypatch, visible, argv, groups):
    machine(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for iteration in dry_run(*argv):
        assert [w.env["CUDA_VISIBLE_DEVICES"] for w in iteration.workers] == groups
        assert {job.env["CUDA_VISIBLE_DEVICES"] for job in iteration.training} == {visible}


def test_without_gpus_there_is_one_worker_on_the_cpu(dry_run):
    for iteration in dry_run():
        (worker,) = iteration.workers
        assert "--cpu" in worker.argv
        assert "CUDA_VISIBLE_DEVICES" not in worker.env
        for job in iteration.training:
            assert not {"CUDA_VISIBLE_DEVICES", "FORCE_TORCHRUN"} & job.env.keys()


def test_adapters_are_served_from_the_second_iteration_on(place, dry_run):
    first, second, third = dry_run("--results=run")
    assert "--adapter" not in " ".join(w for c in first.commands for w in c.argv)
    assert "--max_lora_rank" not in " ".join(w for c in first.commands for w in c.argv)
    for iteration, trained_in in ((second, 1), (third, 2)):
        folder = f"{place}/run/iter_{trained_in}/lora"
        adapters = [
            f"generator-iter{trained_in}={folder}/gen_sft",
            f"extender-iter{trained_in}={folder}/ext_sft",
        ]
        (served,) = iteration.named("run_server.sh")
        assert served.values("--adapter") == adapters
        assert [worker.values("--adapter") for worker in iteration.workers] == [adapters]
    assert first.heading == "# iteration 1: serve base"
    assert second.heading == "# iteration 2: serve base, generator-iter1, extender-iter1"


@pytest.mark.parametrize(("rank", "limit"), [(4, "8"), (8, "8"), (20, "32"), (300, "320")])
def test_the_rank_limit_is_vllms_next(dry_run, rank, limit):
    _, second, _ = dry_run(f"--lora_rank={rank}")
    assert second.workers[0].value("--max_lora_rank") == limit


@pytest.mark.parametrize(("argv", "tokens"), [([], "32768"), (["--max_model_len=9000"], "9000")])
def test_the_context_is_bounded(dry_run, argv, tokens):
    for iteration in dry_run(*argv):
        (served,) = iteration.named("run_server.sh")
        for command in (served, *iteration.workers):
            assert command.value("--max_model_len") == tokens


def test_code_of_the_model_runs_only_when_asked(dry_run):
    plain = [c for iteration in dry_run() for c in iteration.commands]
    assert not any("trust_remote_code" in word for c in plain for word in c.argv)
    for iteration in dry_run("--trust_remote_code"):
        (served,) = iteration.named("run_server.sh")
        assert all("--trust_remote_code" in c.argv for c in (served, *iteration.workers))


def test_everything_listens_on_loopback(machine, dry_run):
    machine(2)
    for iteration in dry_run():
        names = ("controller", "api_server", "worker")
        services = [c for name in names for c in iteration.named(name)]
        assert [service.value("--host") for service in services] == 4 * ["127.0.0.1"]
        controllers = [c.value("--controller") for c in services if c.values("--controller")]
        (controller,) = iteration.named("controller")
        assert controllers == 3 * [f"http://127.0.0.1:{controller.value('--port')}"]


def test_the_base_model_is_the_same_everywhere(place, machine, dry_run):
    machine(2)
    for iteration in dry_run():
        named = [c.value("--base_model") for c in iteration.commands if c.values("--base_model")]
        assert named == 3 * [f"{place}/model"]  # run_server.sh and two workers


def test_the_steps_run_in_order_on_one_folder(place, dry_run):
    scripts = [
        "step0_self_instruct.py",
        "step1_gen_initial_responses.py",
        "step2_extend_responses.py",
        "step3_filter_responses.py",
        "step4_make_sft_data.py",
    ]
    for number, iteration in enumerate(dry_run("--results=run", "--concurrency=7"), 1):
        steps = [command for command in iteration.commands if command.program.startswith("step")]
        assert [step.program for step in steps] == scripts
        for step in steps:
            assert Path(step.argv[1]).parent == ROOT / "qwen"
            assert step.value("--results") == f"{place}/run"
            assert step.value("--iteration") == str(number)
        assert [step.values("--concurrency") for step in steps] == 3 * [["7"]] + 2 * [[]]


class TestTraining:
    @pytest.mark.parametrize(("gpus", "count"), [(1, "1"), (2, "2"), (8, "8")])
    def test_each_role_has_all_gpus_in_turn(self, machine, dry_run, gpus, count):
        machine(gpus)
        for iteration in dry_run():
            for job in iteration.training:
                assert job.env["FORCE_TORCHRUN"] == "1"
                assert job.env["NPROC_PER_NODE"] == count
                assert len(job.env["CUDA_VISIBLE_DEVICES"].split(",")) == gpus

    def test_side_by_side_each_role_has_half_of_the_gpus(self, machine, dry_run):
        machine(8)
        for iteration in dry_run("--side_by_side=yes"):
            env = [
                (j.env["CUDA_VISIBLE_DEVICES"], j.env["NPROC_PER_NODE"]) for j in iteration.training
            ]
            assert env == [("0,1,2,3", "4"), ("4,5,6,7", "4")]

    def test_one_gpu_is_not_halved(self, machine, dry_run):
        machine(1)
        for iteration in dry_run("--side_by_side=yes"):
            assert [job.env["CUDA_VISIBLE_DEVICES"] for job in iteration.training] == ["0", "0"]

    def test_the_batch_is_checked_for_the_devices_of_a_role(self, machine, dry_run):
        machine(8)
        assert dry_run("--side_by_side=yes", "--global_batch=4")  # 4 GPUs a role
        with pytest.raises(UserError, match="no multiple of 8"):
            dry_run("--global_batch=4")

    def test_each_role_has_its_configuration(self, place, dry_run):
        for number, iteration in enumerate(dry_run("--results=run"), 1):
            files = [job.argv[-2:] for job in iteration.training]
            folder = f"{place}/run/iter_{number}/lora"
            assert files == [[TRAINER, f"{folder}/{r}.yaml"] for r in ("gen_sft", "ext_sft")]


class TestNodes:
    """Two nodes, looked at from one of them."""

    @pytest.fixture(params=[0, 1])
    def rank(self, request, monkeypatch) -> int:
        meeting = {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": "29400"}
        for name, value in {"WORLD_SIZE": "2", "RANK": str(request.param), **meeting}.items():
            monkeypatch.setenv(name, value)
        return request.param

    def test_promise_10_everything_asks_for_the_key_and_one_controller_is_joined(
        self, place, machine, dry_run, rank
    ):
        machine(2)
        for iteration in dry_run("--results=run"):
            (served,) = iteration.named("run_server.sh")
            services = [c for n in ("api_server", "worker") for c in iteration.named(n)]
            controllers = iteration.named("controller")
            assert len(controllers) == (rank == 0)
            for command in (served, *services, *controllers):
                assert command.value("--api_key_file") == f"{place}/run/.api_key-KEY"
                assert command.value("--host") == ("127.0.0.2" if rank == 0 else "127.0.0.1")
            joined = {c.value("--controller").rpartition(":")[0] for c in services}
            assert joined == {"http://127.0.0.2"}

    def test_the_leader_alone_runs_the_steps(self, dry_run, rank):
        for iteration in dry_run():
            steps = [c for c in iteration.commands if c.program.startswith("step")]
            assert len(steps) == (5 if rank == 0 else 0)

    def test_both_train_with_the_names_of_llama_factory(self, machine, dry_run, rank):
        machine(4)
        for iteration in dry_run():
            for job in iteration.training:
                assert job.env["FORCE_TORCHRUN"] == "1"
                assert (job.env["NNODES"], job.env["NODE_RANK"]) == ("2", str(rank))
                assert (job.env["NPROC_PER_NODE"], job.env["MASTER_ADDR"]) == ("4", "127.0.0.2")

    def test_the_batch_is_that_of_all_nodes(self, machine, dry_run, rank):
        machine(4)
        assert dry_run("--global_batch=8")  # 8 devices
        with pytest.raises(UserError, match="no multiple of 8 .* on 8 devices"):
            dry_run("--global_batch=12")


@pytest.mark.parametrize("gpus", [0, 2])
def test_what_is_printed_is_what_run_server_starts(place, machine, dry_run, gpus, monkeypatch):
    """The server plans by itself from its command line; only the ports are drawn anew."""
    machine(gpus)
    _, second, _ = dry_run("--results=run", "--lora_rank=20", "--tensor_parallel=1", "--seed=5")
    (served,) = second.named("run_server.sh")
    for adapter in served.values("--adapter"):
        folder = Path(adapter.partition("=")[2])
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"r": 20}')
    args = server.parser().parse_args(served.argv[2:])
    started = plan_server(server.server_options(args), "base").services

    def portless(words: list[str]) -> list[str]:
        return [w for w in words if not w.startswith(("--port=", "--controller="))]

    printed = [c for name in ("controller", "api_server", "worker") for c in second.named(name)]
    assert [portless(s.command) for s in started] == [portless(c.argv) for c in printed]
    assert [s.env for s in started] == [c.env for c in printed]


def test_nothing_is_written(place, machine, dry_run):
    machine(8)
    before = sorted(place.rglob("*"))
    dry_run("--results=run")
    dry_run("--results=run", "--fresh")
    assert sorted(place.rglob("*")) == before


def test_run_sh_prints_the_same_for_the_demo(place):
    before = sorted(place.rglob("*"))
    command = ["bash", str(ROOT / "run.sh"), "--demo", "--dry_run", "--max_iter=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SHELL_LIMIT_S)
    assert done.returncode == 0
    assert sorted(place.rglob("*")) == before
    first, second = parse(done.stdout)
    assert [len(i.workers) for i in (first, second)] == [1, 1]
    assert second.workers[0].value("--base_model") == f"{ROOT}/demo/models/llama"
