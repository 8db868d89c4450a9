"""Claims about the final fine-tune: data, stages, nodes, loss, and the model folder it leaves."""

import json
import random
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from self_lengthen import final_sft
from self_lengthen.cluster import Cluster
from self_lengthen.errors import RunError, UserError
from self_lengthen.family import REPO_ROOT, load_family
from self_lengthen.files import read_json, read_rows, write_json
from self_lengthen.node import Node
from self_lengthen.owned import Owned
from self_lengthen.ports import free_ports
from self_lengthen.runfolder import StepFolder
from self_lengthen.training import final_data, launch
from self_lengthen.training.chat import stand_ins, training_ids
from self_lengthen.training.config import TrainingValues, sft_config, write_config
from self_lengthen.training.conversations import Rows, conversation, sample
from self_lengthen.training.final import Plan
from self_lengthen.training.final_data import ROLE_TAGS
from self_lengthen.training.launch import TrainingJob, process_env
from self_lengthen.training.merge import copy_companions, merge
from self_lengthen.training.padding import WithoutPaddingMask
from self_lengthen.training.trainer import TRAINER

LLAMA, QWEN = (REPO_ROOT / "demo" / "models" / name for name in ("llama", "qwen"))
LIMIT_S = 300
FIRST, SECOND = (Node(rank, 2, "127.0.0.1", 29400, "127.0.0.1") for rank in (0, 1))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def rows_file(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestConversations:
    @pytest.mark.parametrize(
        ("row", "turns"),
        [
            ({"query": "a", "response": "b"}, [user("a"), assistant("b")]),
            ({"instruction": "a", "output": "b"}, [user("a"), assistant("b")]),
            ({"instruction": "a", "input": "c", "output": "b"}, [user("a\nc"), assistant("b")]),
            (
                {"instruction": "e", "output": "f", "system": "s", "history": [["a", "b"]]},
                [system("s"), user("a"), assistant("b"), user("e"), assistant("f")],
            ),
            (
                {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
                [user("a"), assistant("b")],
            ),
            (
                {"messages": [system("s"), user("a"), assistant("b")], "id": 1},
                [system("s"), user("a"), assistant("b")],
            ),
            ({"conversations": [user("a"), assistant("b")]}, [user("a"), assistant("b")]),
        ],
    )
    def test_every_format_is_read(self, row, turns):
        assert conversation(row) == turns

    @pytest.mark.parametrize(
        "row",
        [
            *(None, [], "text", {}, {"query": "a"}, {"response": "b"}, {"messages": []}),
            {"query": "a", "response": None},
            {"query": "a", "response": " "},
            {"messages": [user("a")]},
            {"messages": [assistant("a"), user("b")]},
            {"messages": [user("a"), assistant("b"), user("c")]},
            {"messages": [user("a"), {"role": "tool", "content": "b"}]},
            {"messages": [user("a"), {"role": "assistant", "content": [{"type": "image"}]}]},
            {"messages": ["a", "b"]},
        ],
    )
    def test_what_is_no_plain_conversation_is_none(self, row):
        assert conversation(row) is None

    @given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4))
    def test_a_conversation_of_messages_is_itself(self, pairs):
        turns = [turn for q, a in pairs for turn in (user(q + "."), assistant(a + "."))]
        assert conversation({"messages": turns}) == turns

    def test_a_list_and_lines_are_the_same(self, tmp_path):
        rows = [{"query": str(n), "response": "b"} for n in range(3)]
        lines = rows_file(tmp_path / "lines.jsonl", rows)
        (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
        assert list(Rows(lines).all()) == list(Rows(tmp_path / "list.json").all())

    def test_a_sample_takes_each_row_once_and_passes_over_what_is_none(self, tmp_path):
        files = [
            Rows(
                rows_file(
                    tmp_path / f"{name}.jsonl",
                    [{"query": f"{name}{n}", "response": "b"} for n in range(20)] + [{}],
                )
            )
            for name in "xy"
        ]
        lost: Counter[str] = Counter()
        some = list(sample(files, 30, random.Random(1), lost))
        assert len({turns[0]["content"] for turns in some}) == len(some) == 30
        assert list(sample(files, 30, random.Random(1), Counter())) == some
        lost.clear()
        assert len(list(sample(files, 99, random.Random(1), lost))) == 40
        assert lost == {str(tmp_path / "x.jsonl"): 1, str(tmp_path / "y.jsonl"): 1}


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    """A plan by options, of six rows of ours."""
    ours = [{"query": f"Write {n} words.", "response": f"text {n}."} for n in range(6)]
    data = rows_file(tmp_path / "ours.jsonl", ours)

    def plan(*argv: str, model: Path = LLAMA) -> Plan:
        given = [f"--base_model={model}", f"--data={data}", f"--output={tmp_path / 'out'}", *argv]
        return final_sft.read_plan(given)[0]

    return plan


class TestData:
    def written(self, plan: Plan) -> StepFolder:
        folder = StepFolder(plan.results / "data")
        final_data.write_data(final_data.Sources(plan), folder)
        return folder

    def test_general_data_are_mixed_in_at_the_ratio_and_not_annealed_on(self, plan_of, tmp_path):
        general = [{"instruction": f"g{n}", "output": "x"} for n in range(50)]
        mixed = rows_file(tmp_path / "general.jsonl", general)
        folder = self.written(plan_of(f"--mix_with={mixed}", "--mix_ratio=3", "--anneal_epochs=2"))
        sft, anneal = (list(read_rows(folder.path / f"{n}.jsonl")) for n in ("sft", "anneal"))
        assert sft[:6] == anneal and len(sft) == 6 + 18
        assert {row["messages"][-2]["content"][0] for row in sft[6:]} == {"g"}
        assert folder.complete
        assert read_json(folder.path / "summary.json")["units"] == {"ours": 6, "general": 18}

    def test_twenty_to_one_is_the_default_and_no_annealing(self, plan_of):
        plan = plan_of()
        assert (plan.mix_ratio, plan.anneal_epochs, plan.mix_with) == (20.0, 0.0, [])
        folder = self.written(plan)
        assert not (folder.path / "anneal.jsonl").exists()

    def test_too_few_general_rows_are_all_taken_and_that_is_said(self, plan_of, tmp_path, caplog):
        mixed = rows_file(tmp_path / "general.jsonl", [{"query": "a", "response": "b"}, {}])
        folder = self.written(plan_of(f"--mix_with={mixed}"))
        assert read_json(folder.path / "summary.json")["units"] == {"ours": 6, "general": 1}
        assert "--mix_with holds too few for 1 : 20" in caplog.text
        assert "general.jsonl: 1 rows are no plain conversation" in caplog.text

    def test_llama_factory_reads_them_with_the_system_prompt_of_serving(self, plan_of, tmp_path):
        own = {"messages": [system("own"), user("a"), assistant("b"), user("c"), assistant("d")]}
        mixed = rows_file(tmp_path / "general.jsonl", [own])
        plan = plan_of(f"--mix_with={mixed}", model=QWEN)
        folder = self.written(plan)
        with stand_ins():
            from llamafactory.data.loader import _get_merged_dataset
            from llamafactory.hparams import DataArguments, ModelArguments
        from transformers import Seq2SeqTrainingArguments

        data = DataArguments(dataset_dir=str(folder.path), template="qwen")
        model = ModelArguments(model_name_or_path="x", cache_dir=str(tmp_path / "cache"))
        training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "o"), use_cpu=True)
        read = list(_get_merged_dataset(["sft"], model, data, training, stage="sft"))
        default = final_data.default_system_prompt(plan.family, AutoTokenizer.from_pretrained(QWEN))
        assert [row["_system"] for row in read] == [default] * 6 + ["own"]
        assert read[0]["_prompt"] == [user("Write 0 words.")]
        assert read[0]["_response"] == [assistant("text 0.")]
        assert read[6]["_prompt"] == own["messages"][1:4]


class TestPlan:
    def test_lora_is_annealed_from_the_adapter_of_the_first_stage(self, plan_of, tmp_path):
        sft, anneal = plan_of("--anneal_epochs=2", "--epochs=3").jobs()
        assert "adapter_name_or_path" not in sft.config
        assert anneal.config["adapter_name_or_path"] == str(tmp_path / "out/train/sft")
        assert anneal.config["model_name_or_path"] == str(LLAMA)
        assert (sft.config["num_train_epochs"], anneal.config["num_train_epochs"]) == (3.0, 2.0)
        assert (sft.config["dataset"], anneal.config["dataset"]) == ("sft", "anneal")
        assert sft.config["learning_rate"] == TrainingValues().learning_rate

    def test_all_weights_are_annealed_from_the_model_of_the_first_stage(self, plan_of, tmp_path):
        sft, anneal = plan_of("--anneal_epochs=2", "--finetuning=full").jobs()
        for job in (sft, anneal):
            assert job.config["finetuning_type"] == "full"
            assert not {name for name in job.config if "lora" in name or "adapter" in name}
            assert job.config["learning_rate"] == 1e-5
        assert anneal.config["model_name_or_path"] == str(tmp_path / "out/train/sft")

    def test_without_annealing_there_is_one_stage(self, plan_of):
        assert [job.role for job in plan_of().jobs()] == ["sft"]

    def test_nodes_are_passed_on_under_llama_factorys_names(self, plan_of):
        sft, _ = replace(plan_of("--anneal_epochs=1"), node=SECOND).jobs()
        expected = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
        expected |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"}
        assert expected.items() <= process_env(sft, 29400).items()
        assert sft.config["gradient_accumulation_steps"] == 4  # a global batch of 8 on 2 devices

    def test_one_node_needs_no_launcher_on_the_cpu(self, plan_of):
        (job,) = plan_of().jobs()
        assert not {"NNODES", "NODE_RANK", "FORCE_TORCHRUN"} & job.env.keys()

    def test_a_dry_run_prints_the_command_lines_and_writes_nothing(
        self, plan_of, tmp_path, monkeypatch, capsys
    ):
        plan_of()
        data = tmp_path / "ours.jsonl"
        argv = [f"--base_model={LLAMA}", f"--data={data}", f"--output={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", ["run_sft.sh", *argv, "--anneal_epochs=2", "--dry_run"])
        final_sft.main()
        *trainings, merging = map(shlex.split, capsys.readouterr().out.splitlines())
        assert [Path(line[-1]).name for line in trainings] == ["sft.yaml", "anneal.yaml"]
        assert [line[-2] for line in trainings] == [TRAINER, TRAINER]
        assert f"--trained={tmp_path / 'out/train/anneal'}" in merging
        assert not (tmp_path / "out").exists()


# Stands in for the trainer: notes its environment, leaves an adapter.
FAKE = """
import json, os, sys, yaml
from pathlib import Path
output = Path(yaml.safe_load(open(sys.argv[1]))["output_dir"])
with open(output.parent / "calls", "a") as calls:
    calls.write(output.name + os.environ.get("NODE_RANK", "") + " ")
if os.environ.get("FAKE_FAILS") == output.name:
    sys.exit("this is the reason")
if os.environ.get("NODE_RANK", "0") == "0":
    output.mkdir(parents=True, exist_ok=True)
    (output / "trainer_log.jsonl").write_text(json.dumps({"loss": 1.5}) + chr(10))
    (output / "adapter_model.safetensors").write_text("weights")
"""
FAKE_MERGE = """
import sys
from pathlib import Path
Path(sys.argv[1]).mkdir()
with open(Path(sys.argv[1]).parent / "train/calls", "a") as calls: calls.write("merge ")
"""


class TestLead:
    @pytest.fixture(autouse=True)
    def _stand_ins(self, monkeypatch):
        command = property(lambda job: [sys.executable, "-c", FAKE, str(job.config_file)])
        monkeypatch.setattr(TrainingJob, "command", command)
        merging = lambda plan: [sys.executable, "-c", FAKE_MERGE, str(plan.model)]  # noqa: E731
        monkeypatch.setattr(Plan, "merge_command", merging)
        monkeypatch.setattr(final_sft, "POLL_S", 0.02)
        monkeypatch.setattr(launch, "POLL_S", 0.02)
        monkeypatch.setattr(final_data, "verify_template", lambda *_: None)

    @staticmethod
    def calls(plan: Plan) -> list[str]:
        return (plan.results / "train/calls").read_text().split()

    def test_stages_then_the_merge_and_the_manifest_last(self, plan_of):
        plan = plan_of("--anneal_epochs=1")
        final_sft.lead(plan)
        assert self.calls(plan) == ["sft", "anneal", "merge"]
        manifest = read_json(plan.results / "manifest.json")
        assert manifest == {
            "model": str(plan.model),
            "last_losses": {"sft": 1.5, "anneal": 1.5},
        }
        final_sft.lead(plan)
        assert self.calls(plan) == ["sft", "anneal", "merge"]  # complete: nothing again

    def test_after_a_failure_the_same_command_goes_on(self, plan_of, monkeypatch):
        plan = plan_of("--anneal_epochs=1")
        monkeypatch.setenv("FAKE_FAILS", "anneal")
        with pytest.raises(RunError, match="this is the reason"):
            final_sft.lead(plan)
        assert not (plan.results / "manifest.json").exists()
        monkeypatch.delenv("FAKE_FAILS")
        final_sft.lead(plan)
        assert self.calls(plan) == ["sft", "anneal", "anneal", "merge"]

    def test_a_failed_merge_names_its_log(self, plan_of, monkeypatch):
        plan = plan_of()
        merging = lambda plan: [sys.executable, "-c", "raise SystemExit('no room')"]  # noqa: E731
        monkeypatch.setattr(Plan, "merge_command", merging)
        with pytest.raises(
            RunError, match="merge ended with status 1; log: .*merge.log\n.*no room"
        ):
            final_sft.lead(plan)

    @pytest.mark.parametrize(
        ("option", "name"),
        [("--seed=7", "seed"), ("--epochs=9", "epochs"), ("--mix_ratio=2", "mix_ratio")],
    )
    def test_other_options_are_refused_by_name(self, plan_of, option, name):
        final_sft.lead(plan_of())
        with pytest.raises(UserError, match=f"with {name}=.*or another --output"):
            final_sft.lead(plan_of(option))

    def test_a_folder_of_something_else_is_refused(self, plan_of, tmp_path):
        write_json(tmp_path / "out/mine.json", {})
        with pytest.raises(UserError, match="holds other files"):
            final_sft.lead(plan_of())

    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            ([{"query": "a", "response": "b"}, {"query": "a"}], r"bad.jsonl:2: is no conversation"),
            ([], "bad.jsonl: holds no row"),
        ],
    )
    def test_a_wrong_row_is_named_before_anything_is_written(self, plan_of, tmp_path, rows, told):
        bad = rows_file(tmp_path / "bad.jsonl", rows)
        plan = plan_of()
        plan.data[:] = [bad]
        with pytest.raises(UserError, match=told):
            final_sft.lead(plan)
        assert not plan.results.exists()

    def test_another_node_trains_its_part_and_writes_nothing_else(self, plan_of):
        [port] = free_ports("127.0.0.1", 1)
        plans = [replace(plan_of(), node=replace(n, master_port=port)) for n in (FIRST, SECOND)]
        with ThreadPoolExecutor() as pool:
            ends = [pool.submit(self.take_part, plan) for plan in plans]
            for end in ends:
                end.result(timeout=LIMIT_S)
        assert sorted(self.calls(plans[0])) == ["merge", "sft0", "sft1"]
        assert (plans[0].logs / "sft.rank1.log").exists()
        assert read_json(plans[0].results / "manifest.json")["last_losses"] == {"sft": 1.5}

    @staticmethod
    def take_part(plan: Plan) -> None:
        with Cluster(plan.node, 60) as cluster:
            if plan.node.leads:
                final_sft.lead(plan, cluster)
            else:
                final_sft.SftFollower(plan, cluster).go()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--data=x", "--output=y"], "--base_model"),
        ([f"--base_model={LLAMA}", "--output=y"], "--data"),
        (["--base_model=./none", "--data=x", "--output=y"], "no such folder"),
        ([f"--base_model={LLAMA}", "--data=x", "--output=a b"], "no path with a space"),
        ([f"--base_model={LLAMA}", "--data=x", "--output=y", "--mix_ratio=0"], "above 0"),
        ([f"--base_model={LLAMA}", "--data=x", "--output=y", "--finetuning=qlora"], "qlora"),
        ([f"--base_model={LLAMA}", "--data=x", "--output=y", "--device_batch=3"], "no multiple"),
    ],
)
def test_a_mistake_is_one_line(argv, told):
    with pytest.raises(UserError) as refusal:
        final_sft.read_plan(argv)
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A random model of two layers with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(LLAMA))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, **sizes, **heads, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(folder)
    copy_companions(LLAMA, folder)
    return folder


class TestLoss:
    """One step of SGD by LLaMA-Factory itself shows the gradient, and so the loss."""

    PAIRS = (
        ("Write on tea.", "Tea."),
        ("Write on rain.", "Rain falls on the hills and valleys." * 3),
    )
    LEARNING_RATE = 0.5

    def config(self, tiny: Path, tmp_path: Path, devices: int) -> dict[str, Any]:
        data = tmp_path / "data"
        data.mkdir()
        rows = [{"messages": [user(q), assistant(a)]} for q, a in self.PAIRS]
        rows_file(data / "sft.jsonl", rows)
        kind = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": ROLE_TAGS}
        write_json(data / "dataset_info.json", {"sft": {"file_name": "sft.jsonl", **kind}})
        values = TrainingValues(
            learning_rate=self.LEARNING_RATE,
            epochs=1.0,
            warmup_ratio=0.0,
            cutoff_len=512,
            global_batch=2,
        )
        config = sft_config(
            "sft",
            base_model=str(tiny),
            template="llama3",
            data=data,
            output=tmp_path / "out",
            previous_adapter=None,
            values=values,
            devices=devices,
            sharding=None,
            seed=1,
            finetuning="full",
        )
        plain = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        return {**config, **plain, "save_strategy": "no", "plot_loss": False}

    def after_one_step(self, tiny: Path, weights: Callable[[list[int]], list[float]]) -> dict:
        """The weights after a step on the texts' summed losses, each times its weight."""
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        llama, sums, targets = load_family("llama"), [], []
        for question, answer in self.PAIRS:
            asked, reply = training_ids(llama, str(tiny), question, answer, "")
            labels = torch.tensor([[-100] * len(asked) + reply])
            logits = model(torch.tensor([asked + reply])).logits
            loss = torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
            )
            sums.append(loss)
            targets.append(len(reply))
        sum(w * loss for w, loss in zip(weights(targets), sums, strict=True)).backward()
        with torch.no_grad():
            return {
                name: p - self.LEARNING_RATE * p.grad
                for name, p in model.named_parameters()
                if p.grad is not None
            }

    def over_all_tokens(self, targets: list[int]) -> list[float]:
        return [1 / sum(targets)] * len(targets)

    def over_texts(self, targets: list[int]) -> list[float]:
        return [1 / (len(targets) * count) for count in targets]

    def check(self, tiny: Path, output: Path) -> None:
        trained = dict(AutoModelForCausalLM.from_pretrained(output).named_parameters())
        wanted = self.after_one_step(tiny, self.over_all_tokens)
        other = self.after_one_step(tiny, self.over_texts)
        for name, value in wanted.items():
            assert torch.allclose(trained[name], value, atol=1e-5), name
        assert not all(torch.allclose(wanted[n], other[n], atol=1e-4) for n in wanted)

    def test_it_is_averaged_over_the_tokens_of_all_micro_batches(self, tiny, tmp_path, monkeypatch):
        config = self.config(tiny, tmp_path, devices=1)
        assert config["gradient_accumulation_steps"] == 2
        monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
        with stand_ins():
            from llamafactory.train.tuner import run_exp

            run_exp(config, [WithoutPaddingMask()])
        self.check(tiny, tmp_path / "out")

    @pytest.mark.real
    def test_it_is_averaged_over_the_tokens_of_all_devices(self, tiny, tmp_path):
        config = self.config(tiny, tmp_path, devices=2)
        assert config["gradient_accumulation_steps"] == 1
        two = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
        job = TrainingJob("sft", config, tmp_path / "sft.yaml", {**launch.device_env([]), **two})
        write_config(job.config, job.config_file)
        env = process_env(job, *free_ports("127.0.0.1", 1))
        with Owned("two devices", job.command, tmp_path / "log", env) as process:
            assert process.wait(LIMIT_S) == 0, process.log_tail()
        self.check(tiny, tmp_path / "out")


class TestMerge:
    def adapter(self, tiny: Path, tmp_path: Path) -> Path:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(tiny)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def logits(self, model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.arange(5, 25)[None]).logits

    def test_the_merged_model_computes_what_base_and_adapter_compute(self, tiny, tmp_path):
        from peft import PeftModel

        adapter = self.adapter(tiny, tmp_path)
        merge(tiny, adapter, tmp_path / "model")
        base = AutoModelForCausalLM.from_pretrained(tiny)
        before = self.logits(base)
        expected = self.logits(PeftModel.from_pretrained(base, adapter))
        found = self.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(found, before, atol=1e-2)

    def test_tokenizer_and_chat_template_are_those_of_the_base_model(self, tiny, tmp_path):
        merge(tiny, self.adapter(tiny, tmp_path), tmp_path / "model")
        for path in tiny.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
        talk = [user("Write on tea."), assistant("Tea.")]
        ids = [
            AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, return_dict=False)
            for folder in (tiny, tmp_path / "model")
        ]
        assert ids[0] == ids[1]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_a_whole_model_is_written_in_the_precision_of_the_base_model(
        self, tiny, tmp_path, dtype
    ):
        base, trained = tmp_path / "base", tmp_path / "trained"
        shutil.copytree(tiny, base)
        AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype).save_pretrained(base)
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).save_pretrained(trained)
        merge(base, trained, tmp_path / "model")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").dtype == dtype

    def test_what_an_interrupted_merge_left_is_no_model(self, tiny, tmp_path):
        left = tmp_path / ".model.unfinished"
        left.mkdir()
        (left / "half").touch()
        merge(tiny, self.adapter(tiny, tmp_path), tmp_path / "model")
        assert not left.exists() and not (tmp_path / "model/half").exists()
