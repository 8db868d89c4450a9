"""Claims about fine-tuning: LLaMA-Factory's configuration, and what a killed or failed one leaves.

The real LLaMA-Factory parses the written YAML; a stand-in for its command trains nothing. The CUDA
variant is parsed on the CPU and without what needs DeepSpeed and Liger, which are not there for it
(bench/training.py runs it on a GPU).
"""

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from self_lengthen.errors import RunError, UserError
from self_lengthen.runfolder import ROLES, RunFolder
from self_lengthen.training import launch
from self_lengthen.training.chat import stand_ins
from self_lengthen.training.config import (
    DEALT_OUT,
    OFFLOADED,
    SHARDINGS,
    WHOLE,
    TrainingValues,
    gradient_accumulation,
    sft_config,
    write_config,
    zero3,
)
from self_lengthen.training.launch import TrainingJob, plan_training
from self_lengthen.training.together import train

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 30


@pytest.fixture(scope="module")
def get_train_args() -> Callable[..., tuple]:
    """LLaMA-Factory's parser; its import takes seconds."""
    with stand_ins():
        from llamafactory.hparams import get_train_args

        return get_train_args


def config_of(tmp_path: Path, **given: Any) -> dict[str, Any]:
    defaults = {
        "base_model": str(ROOT / "demo" / "models" / "llama"),
        "template": "llama3",
        "data": tmp_path / "sft",
        "output": tmp_path / "lora" / "gen_sft",
        "previous_adapter": None,
        "values": TrainingValues(),
        "devices": 1,
        "sharding": None,
        "seed": 42,
    }
    return sft_config("gen_sft", **{**defaults, **given})


class TestConfig:
    def test_the_defaults_are_the_papers(self, tmp_path):
        papers = {
            "stage": "sft",
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": 8,
            "lora_alpha": 16,
            "cutoff_len": 16384,
            "learning_rate": 1e-4,
            "num_train_epochs": 4.0,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
        }
        config = config_of(tmp_path)
        assert {name: config[name] for name in papers} == papers

    def test_the_cpu_gets_neither_deepspeed_nor_bf16(self, tmp_path):
        assert not {"deepspeed", "bf16", "enable_liger_kernel"} & config_of(tmp_path).keys()

    def test_remote_code_is_off_unless_asked(self, tmp_path):
        assert config_of(tmp_path)["trust_remote_code"] is False
        assert config_of(tmp_path, trust_remote_code=True)["trust_remote_code"] is True

    def test_only_a_previous_adapter_is_continued(self, tmp_path):
        assert "adapter_name_or_path" not in config_of(tmp_path)
        continued = config_of(tmp_path, previous_adapter=tmp_path / "iter_1")
        assert continued["adapter_name_or_path"] == str(tmp_path / "iter_1")
        assert continued["create_new_adapter"] is False

    @pytest.mark.parametrize(
        ("global_batch", "device_batch", "devices", "steps"),
        [(8, 1, 1, 8), (8, 1, 8, 1), (8, 2, 2, 2), (16, 1, 8, 2), (48, 2, 8, 3), (4, 4, 1, 1)],
    )
    def test_accumulation_makes_up_for_the_devices(
        self, global_batch, device_batch, devices, steps
    ):
        values = TrainingValues(global_batch=global_batch, device_batch=device_batch)
        assert gradient_accumulation(values, devices) == steps
        assert steps * device_batch * devices == global_batch

    @pytest.mark.parametrize(
        ("global_batch", "device_batch", "devices"), [(8, 1, 3), (8, 3, 2), (1, 1, 2)]
    )
    def test_a_batch_that_cannot_be_dealt_out_is_refused(self, global_batch, device_batch, devices):
        values = TrainingValues(global_batch=global_batch, device_batch=device_batch)
        with pytest.raises(UserError) as refusal:
            gradient_accumulation(values, devices)
        assert str(refusal.value) == (
            f"--global_batch={global_batch}: is no multiple of {device_batch * devices} "
            f"(--device_batch={device_batch} on {devices} devices); give one that is"
        )

    def test_zero3_is_written_beside_the_yaml(self, tmp_path):
        config = config_of(tmp_path, sharding=DEALT_OUT)
        write_config(config, tmp_path / "lora" / "gen_sft.yaml")
        assert config["deepspeed"] == str(tmp_path / "lora" / "zero3.json")
        written = json.loads(Path(config["deepspeed"]).read_text())
        assert written == zero3(offload=False, finetuning="lora")

    def test_zero3_partitions_the_weights_and_saves_them_whole(self):
        config = zero3(offload=False, finetuning="lora")
        zero = config["zero_optimization"]
        assert (zero["stage"], zero["stage3_gather_16bit_weights_on_model_save"]) == (3, True)
        assert not {"offload_param", "offload_optimizer"} & zero.keys()
        assert config["bf16"] == {"enabled": "auto"}

    @pytest.mark.parametrize(
        ("finetuning", "moved"),
        [("lora", {"offload_param"}), ("full", {"offload_param", "offload_optimizer"})],
    )
    def test_what_does_not_fit_goes_to_the_host(self, tmp_path, finetuning, moved):
        config = config_of(tmp_path, sharding=OFFLOADED, finetuning=finetuning)
        write_config(config, tmp_path / "lora" / "gen_sft.yaml")
        zero = json.loads(Path(config["deepspeed"]).read_text())["zero_optimization"]
        assert {name for name in zero if name.startswith("offload")} == moved
        assert all(zero[name]["device"] == "cpu" for name in moved)

    @pytest.mark.parametrize("sharding", SHARDINGS)
    def test_every_gpu_gets_bf16_and_the_fused_loss(self, tmp_path, sharding):
        config = config_of(tmp_path, sharding=sharding)
        assert (config["bf16"], config["enable_liger_kernel"]) == (True, True)
        assert ("deepspeed" in config) == (sharding != WHOLE)

    def test_every_auto_of_zero3_is_one_that_the_trainer_fills_in(self):
        """An "auto" that nobody fills in is an error of DeepSpeed's."""
        package = Path(importlib.util.find_spec("transformers").origin).parent
        text = (package / "integrations" / "deepspeed.py").read_text()
        config = zero3(offload=True, finetuning="full")
        autos = [name for name, value in config.items() if value == "auto"]
        autos += [
            f"{n}.{k}"
            for n, v in config.items()
            if isinstance(v, dict)
            for k in v
            if v[k] == "auto"
        ]
        assert len(autos) == 8
        for name in autos:
            assert f'"{name}"' in text, name


class TestRealLlamaFactory:
    """What LLaMA-Factory itself makes of the written YAML."""

    @pytest.fixture
    def parse(self, tmp_path, monkeypatch, get_train_args):
        def parsed(config: dict[str, Any], **changes: Any) -> tuple:
            left_out = {name for name, value in changes.items() if value is None}
            kept = {name: value for name, value in {**config, **changes}.items()}
            file = tmp_path / "lora" / "gen_sft.yaml"
            write_config({n: v for n, v in kept.items() if n not in left_out}, file)
            monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(file)])
            return get_train_args()

        return parsed

    def test_the_cpu_variant_arrives_as_meant(self, tmp_path, parse):
        model, data, training, lora, _ = parse(config_of(tmp_path))
        assert model.model_name_or_path == str(ROOT / "demo" / "models" / "llama")
        assert (model.adapter_name_or_path, model.trust_remote_code) == (None, False)
        assert (data.dataset, data.dataset_dir) == (["gen_sft"], str(tmp_path / "sft"))
        assert (data.template, data.cutoff_len, data.packing) == ("llama3", 16384, False)
        assert (lora.stage, lora.finetuning_type, lora.lora_target) == ("sft", "lora", ["all"])
        assert (lora.lora_rank, lora.lora_alpha) == (8, 16)
        assert training.do_train
        assert training.output_dir == str(tmp_path / "lora" / "gen_sft")
        assert (training.learning_rate, training.num_train_epochs) == (1e-4, 4.0)
        assert training.lr_scheduler_type == "cosine"
        assert training.get_warmup_steps(200) == 20  # a share, not a number of steps
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 8
        assert (training.save_strategy, training.save_total_limit) == ("epoch", 1)
        assert (training.seed, training.report_to) == (42, [])
        assert not training.bf16

    def test_no_warm_up_is_none(self, tmp_path, parse):
        _, _, training, _, _ = parse(config_of(tmp_path, values=TrainingValues(warmup_ratio=0.0)))
        assert training.get_warmup_steps(200) == 0

    def test_the_cuda_variant_arrives_as_meant(self, tmp_path, parse):
        config = config_of(tmp_path, sharding=DEALT_OUT, devices=8)
        missing = dict.fromkeys(("deepspeed", "enable_liger_kernel"))
        _, _, training, _, _ = parse(config, **missing, use_cpu=True)
        assert training.bf16
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 8

    def test_a_previous_adapter_is_continued(self, tmp_path, parse):
        model, _, _, lora, _ = parse(config_of(tmp_path, previous_adapter=tmp_path / "before"))
        assert model.adapter_name_or_path == [str(tmp_path / "before")]
        assert lora.create_new_adapter is False

    def test_a_complete_checkpoint_is_resumed_and_other_files_alone_are_refused(
        self, tmp_path, parse
    ):
        """What launch.prepare relies on."""
        output = tmp_path / "lora" / "gen_sft"
        (output / "checkpoint-12").mkdir(parents=True)
        _, _, training, _, _ = parse(config_of(tmp_path))
        assert training.resume_from_checkpoint == str(output / "checkpoint-12")
        shutil.rmtree(output / "checkpoint-12")
        (output / "adapter_model.safetensors").touch()
        with pytest.raises(ValueError, match="already exists and is not empty"):
            parse(config_of(tmp_path))


class TestPlan:
    OPTIONS = {"base_model": "/models/base", "seed": 7, "trust_remote_code": False}

    def jobs(self, tmp_path, family, iteration=1, gpus=(), side_by_side=False):
        plan = (RunFolder(tmp_path), iteration, family, self.OPTIONS, TrainingValues(), gpus)
        sharding = WHOLE if gpus else None
        return plan_training(*plan, sharding=sharding, side_by_side=side_by_side)

    def test_each_role_trains_on_its_rows_with_the_familys_template(self, tmp_path, family):
        jobs = self.jobs(tmp_path, family)
        assert [job.role for job in jobs] == list(ROLES)
        for job in jobs:
            assert job.config["dataset"] == job.role
            assert job.config["dataset_dir"] == str(tmp_path / "iter_1" / "sft")
            assert job.config["template"] == family.training_template
            assert job.output == tmp_path / "iter_1" / "lora" / job.role
            assert (job.config["seed"], job.config["model_name_or_path"]) == (7, "/models/base")
            assert "adapter_name_or_path" not in job.config

    def test_each_iteration_goes_on_with_the_adapter_of_the_one_before(self, tmp_path, llama):
        for job in self.jobs(tmp_path, llama, iteration=3):
            before = tmp_path / "iter_2" / "lora" / job.role
            assert job.config["adapter_name_or_path"] == str(before)

    def test_side_by_side_the_cores_are_shared(self, tmp_path, llama, monkeypatch):
        monkeypatch.setattr(launch.os, "cpu_count", lambda: 6)
        threads = [job.env["OMP_NUM_THREADS"] for job in self.jobs(tmp_path, llama)]
        halves = [j.env["OMP_NUM_THREADS"] for j in self.jobs(tmp_path, llama, side_by_side=True)]
        assert (threads, halves) == (["6", "6"], ["3", "3"])

    def test_the_batch_is_for_the_gpus_of_one_role(self, tmp_path, llama):
        jobs = self.jobs(tmp_path, llama, gpus=list("01234567"), side_by_side=True)
        assert [job.config["gradient_accumulation_steps"] for job in jobs] == [2, 2]
        assert all(job.config["bf16"] for job in jobs)


# Stands in for the trainer: notes what it finds, then does as MODE says.
FAKE = """
import json, os, sys, time
from pathlib import Path
import yaml
output = Path(yaml.safe_load(open(sys.argv[1]))["output_dir"])
note = {"found": sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())}
note |= {"env": dict(os.environ), "pid": os.getpid(), "started": time.monotonic()}
mode = os.environ["MODE"]
output.mkdir(parents=True, exist_ok=True)
note_file = Path(sys.argv[1] + ".note")
note_file.write_text(json.dumps(note))
print("this is the reason", mode, flush=True)
if mode == "fail":
    sys.exit(3)
if mode == "hang":
    time.sleep(120)
until = time.monotonic() + 20
while mode == "meet" and time.monotonic() < until and len(list(output.parent.glob("*.note"))) < 2:
    time.sleep(0.02)
checkpoint = output / "checkpoint-9"
checkpoint.mkdir(exist_ok=True)
(checkpoint / "trainer_state.json").write_text("{}")
rows = [{"loss": 2.5, "current_steps": 1, "total_steps": 2}, {"loss": 1.5}, {"runtime": 3}]
(output / "trainer_log.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
if mode == "die once" and not note["found"]:
    os.kill(os.getpid(), 9)
if mode != "empty":
    (output / "adapter_model.safetensors").write_text(mode)
note_file.write_text(json.dumps({**note, "ended": time.monotonic()}))
"""


class TestTrain:
    @pytest.fixture(autouse=True)
    def _fake_command(self, monkeypatch):
        def command(job: TrainingJob) -> list[str]:
            return [sys.executable, "-c", FAKE, str(job.config_file)]

        monkeypatch.setattr(TrainingJob, "command", property(command))
        monkeypatch.setattr(launch, "POLL_S", 0.02)

    @pytest.fixture
    def job(self, tmp_path):
        def make(role: str = "gen_sft", mode: str = "train") -> TrainingJob:
            output = tmp_path / "lora" / role
            config = config_of(tmp_path, output=output)
            return TrainingJob(role, config, output.with_name(f"{role}.yaml"), {"MODE": mode})

        return make

    @staticmethod
    def note(job: TrainingJob) -> dict[str, Any]:
        return json.loads(Path(f"{job.config_file}.note").read_text())

    @staticmethod
    def run(
        tmp_path: Path, *jobs: TrainingJob, side_by_side: bool = False, timeout_s: float = LIMIT_S
    ):
        train(jobs, tmp_path / "logs", side_by_side=side_by_side, timeout_s=timeout_s)

    def test_it_ends_with_a_manifest_and_without_checkpoints(self, tmp_path, job):
        jobs = [job(role) for role in ROLES]
        self.run(tmp_path, *jobs)
        for done in jobs:
            manifest = json.loads(done.manifest.read_text())
            assert (manifest["role"], manifest["steps"]) == (done.role, 2)
            assert manifest["losses"] == [2.5, 1.5]
            files = sorted(path.name for path in done.output.iterdir())
            assert files == ["adapter_model.safetensors", "trainer_log.jsonl"]

    def test_what_is_complete_is_not_trained_again(self, tmp_path, job):
        self.run(tmp_path, job())
        again, other = job(mode="fail"), job("ext_sft")
        self.run(tmp_path, again, other)
        assert (again.output / "adapter_model.safetensors").read_text() == "train"
        assert other.manifest.exists()

    def test_side_by_side_the_roles_are_trained_together(self, tmp_path, job):
        first, second = (job(role, "meet") for role in ROLES)
        self.run(tmp_path, first, second, side_by_side=True)
        assert self.note(second)["started"] < self.note(first)["ended"]

    def test_else_one_is_trained_after_the_other(self, tmp_path, job):
        first, second = (job(role) for role in ROLES)
        self.run(tmp_path, first, second)
        assert self.note(first)["ended"] < self.note(second)["started"]

    def test_a_launcher_finds_our_programs_and_a_port_of_its_own(self, tmp_path, job):
        first, second = (job(role) for role in ROLES)
        self.run(tmp_path, first, second, side_by_side=True)
        env = self.note(first)["env"]
        assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
        assert env["DISABLE_VERSION_CHECK"] == "1"
        assert int(env["MASTER_PORT"]) != int(self.note(second)["env"]["MASTER_PORT"])

    def test_a_failure_names_its_log_and_shows_its_end(self, tmp_path, job):
        failing = job(mode="fail")
        with pytest.raises(RunError) as failure:
            self.run(tmp_path, failing)
        first, *tail = str(failure.value).splitlines()
        log = tmp_path / "logs" / "gen_sft.log"
        assert first == f"training of gen_sft ended with status 3; log: {log}"
        assert tail[-1].strip() == "this is the reason fail"
        assert not failing.manifest.exists()

    def test_an_end_without_an_adapter_is_a_failure(self, tmp_path, job):
        failing = job(mode="empty")
        with pytest.raises(RunError) as failure:
            self.run(tmp_path, failing)
        log = tmp_path / "logs" / "gen_sft.log"
        assert str(failure.value) == f"training of gen_sft ended without weights; log: {log}"
        assert not failing.manifest.exists()

    def test_a_training_that_dies_on_its_way_goes_on_from_its_checkpoint(self, tmp_path, job):
        dying = job(mode="die once")
        self.run(tmp_path, dying)
        assert "checkpoint-9/trainer_state.json" in self.note(dying)["found"]
        assert dying.manifest.exists()

    def test_a_training_that_dies_without_a_step_made_is_not_tried_again(self, tmp_path, job):
        failing = job(mode="fail")
        with pytest.raises(RunError):
            self.run(tmp_path, failing)
        assert (tmp_path / "logs" / "gen_sft.log").read_text().count("this is the reason") == 1

    def test_a_failure_stops_the_other_role(self, tmp_path, job):
        hanging = job(mode="hang")
        with pytest.raises(RunError, match="^training of ext_sft"):
            self.run(tmp_path, hanging, job("ext_sft", "fail"), side_by_side=True)
        assert not self.lives(hanging)
        assert not hanging.manifest.exists()

    def test_a_training_that_hangs_ends_at_the_deadline(self, tmp_path, job):
        hanging = job(mode="hang")
        started = time.monotonic()
        with pytest.raises(RunError) as failure:
            self.run(tmp_path, hanging, timeout_s=1.5)
        assert str(failure.value) == (
            f"training of gen_sft did not end within 2 s; logs: {tmp_path / 'logs'}"
        )
        assert time.monotonic() - started < LIMIT_S
        assert not self.lives(hanging)

    def lives(self, job: TrainingJob) -> bool:
        """A role that was stopped before it came up has left no note, and does not live."""
        if not Path(f"{job.config_file}.note").exists():
            return False
        return Path(f"/proc/{self.note(job)['pid']}").exists()

    def test_a_torn_folder_without_checkpoint_is_cleared(self, tmp_path, job):
        torn = job()
        torn.output.mkdir(parents=True)
        (torn.output / "adapter_model.safetensors").write_text("half")
        self.run(tmp_path, torn)
        assert self.note(torn)["found"] == []
        assert torn.manifest.exists()

    def test_a_checkpoint_is_kept(self, tmp_path, job):
        killed = job()
        state = "checkpoint-5/trainer_state.json"
        (killed.output / state).parent.mkdir(parents=True)
        (killed.output / state).write_text('{"global_step": 5}')
        (killed.output / "trainer_log.jsonl").write_text("")
        self.run(tmp_path, killed)
        assert self.note(killed)["found"] == [state, "trainer_log.jsonl"]

    @pytest.mark.parametrize("state", [None, "", '{"global_step": '])
    def test_a_torn_checkpoint_is_cleared_and_the_one_before_kept(self, tmp_path, job, state):
        """The trainer writes trainer_state.json last, and cannot resume without it."""
        killed = job()
        for step in (5, 10):
            folder = killed.output / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").touch()
        (killed.output / "checkpoint-5" / "trainer_state.json").write_text("{}")
        if state is not None:
            (killed.output / "checkpoint-10" / "trainer_state.json").write_text(state)
        self.run(tmp_path, killed)
        found = self.note(killed)["found"]
        assert found == [
            f"checkpoint-5/{n}" for n in ("adapter_model.safetensors", "trainer_state.json")
        ]

    def test_deepspeed_does_not_begin_with_a_checkpoint_that_is_not_its_own(self, tmp_path, job):
        """--sharding may change when a run is continued."""
        for latest, kept in ((False, []), (True, ["checkpoint-5"])):
            folder = (changed := job()).output / "checkpoint-5"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text("{}")
            if latest:
                (folder / "latest").write_text("global_step5")
            changed.config["deepspeed"] = str(tmp_path / "lora" / "zero3.json")
            launch.prepare(changed)
            assert [path.name for path in changed.output.glob("*")] == kept

    def test_a_torn_checkpoint_alone_is_a_torn_folder(self, tmp_path, job):
        killed = job()
        (killed.output / "checkpoint-10").mkdir(parents=True)
        (killed.output / "training_args.bin").touch()
        self.run(tmp_path, killed)
        assert self.note(killed)["found"] == []

    def test_killed_while_checkpoints_are_removed_it_is_complete(self, tmp_path, job, monkeypatch):
        def killed_here(path: Path) -> None:
            raise KeyboardInterrupt

        done = job()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(launch.shutil, "rmtree", killed_here)
            self.run(tmp_path, done)
        assert done.manifest.exists()


def test_the_yaml_is_what_was_planned(tmp_path):
    config = config_of(tmp_path, previous_adapter=tmp_path / "运行" / "adapter")
    write_config(config, tmp_path / "new" / "gen_sft.yaml")
    assert yaml.safe_load((tmp_path / "new" / "gen_sft.yaml").read_text()) == config
