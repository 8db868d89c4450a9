"""Claims about the server's command lines: LoRA ranks, names; and workers that take them."""

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from self_lengthen import serving
from self_lengthen.errors import UserError
from self_lengthen.serving.fields import SAMPLING_FIELDS
from self_lengthen.serving.plan import (
    LORA_RANKS,
    ServerOptions,
    lora_rank,
    max_lora_rank,
    plan_server,
)
from self_lengthen.serving.reply import WATCHED_TOKENS
from self_lengthen.training.chat import load_tokenizer, serving_ids

ENGINE_MODULES = (
    "vllm",
    "vllm.lora.request",
    "vllm.sampling_params",
    "vllm.usage.usage_lib",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.exceptions",
)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The worker's module without vLLM, which takes seconds to import: its names do nothing."""
    with monkeypatch.context() as patch:  # others ask whether vLLM is there: only while importing
        for name in ENGINE_MODULES:
            module = ModuleType(name)
            module.__getattr__ = lambda wanted: type(wanted, (Exception,), {})
            patch.setitem(sys.modules, name, module)
        sys.modules.pop("self_lengthen.serving.worker", None)
        imported = importlib.import_module("self_lengthen.serving.worker")
    yield imported
    del sys.modules["self_lengthen.serving.worker"], serving.worker


@pytest.fixture
def adapter(tmp_path: Path):
    def make(rank: object, name: str = "adapter") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return str(folder)

    return make


def vllm_folder() -> Path:
    """Where vLLM's source is; it is read, not imported."""
    return Path(importlib.util.find_spec("vllm").origin).parent


def options(**given: object) -> ServerOptions:
    defaults = {
        "base_model": "/models/base",
        "adapters": {},
        "groups": [[]],
        "max_model_len": 4096,
        "log_dir": Path("/logs"),
    }
    return ServerOptions(**{**defaults, **given})


class TestLoraRank:
    @pytest.mark.parametrize(
        ("rank", "limit"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (65, 128), (512, 512)]
    )
    def test_the_limit_is_vllms_next(self, adapter, rank, limit):
        assert max_lora_rank(options(adapters={"a": adapter(rank)})) == limit

    def test_the_highest_adapter_counts(self, adapter):
        adapters = {"a": adapter(8, "a"), "b": adapter(20, "b")}
        assert max_lora_rank(options(adapters=adapters)) == 32

    def test_a_planned_rank_needs_no_adapter_on_disk(self):
        assert max_lora_rank(options(adapters={"a": "/not/yet"}, lora_rank=12)) == 16

    def test_the_limits_are_vllms(self):
        source = (vllm_folder() / "config" / "lora.py").read_text()
        limits = re.search(r"^MaxLoRARanks = Literal(\[.*\])$", source, re.MULTILINE)[1]
        assert tuple(json.loads(limits)) == LORA_RANKS

    def test_a_rank_over_the_limit_is_refused(self, adapter):
        folder = adapter(513)
        with pytest.raises(UserError) as refusal:
            lora_rank(folder)
        assert str(refusal.value) == f"--adapter: {folder} has rank 513, vLLM serves up to 512"

    def test_a_folder_that_is_no_adapter_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=f"^--adapter: {tmp_path} has no adapter_config.json"):
            lora_rank(str(tmp_path))

    @pytest.mark.parametrize("text", ["{", "{}", '{"r": null}', "[]"])
    def test_an_adapter_without_a_rank_is_refused(self, tmp_path, text):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=f"^--adapter: {tmp_path} has no .* with a rank"):
            lora_rank(str(tmp_path))


class TestPlan:
    def test_names_and_addresses_agree(self, adapter):
        plan = plan_server(options(groups=[["0"], ["1"]], adapters={"a": adapter(8)}), "base")
        names = ["controller", "api_server", "worker_0", "worker_1"]
        assert [service.name for service in plan.services] == names
        assert plan.models == ["base", "a"]
        assert len({service.url for service in plan.services}) == 4
        for service in plan.services:
            port = next(part for part in service.command if part.startswith("--port="))
            assert service.url == f"http://127.0.0.1:{port.partition('=')[2]}"
        for service in (plan.api, *plan.workers):
            assert f"--controller={plan.controller.url}" in service.command

    def test_an_adapter_cannot_take_the_name_of_the_base_model(self, adapter):
        with pytest.raises(UserError, match="^--adapter=base=.*: base is the name of the base"):
            plan_server(options(adapters={"base": adapter(8)}), "base")

    def test_logs_of_fastchat_go_to_the_log_folder(self):
        plan = plan_server(options(), "base")
        assert all(service.env["LOGDIR"] == "/logs" for service in plan.services)

    def test_a_worker_takes_its_command_line(self, worker, adapter, monkeypatch):
        folder = adapter(12)
        given = options(
            groups=[["2", "3"]],
            adapters={"a": folder, "b": folder},
            trust_remote_code=True,
            seed=7,
            max_num_seqs=5,
        )
        service = plan_server(given, "base").workers[0]
        python, flag, module, *argv = service.command
        assert (python, flag, module) == (sys.executable, "-m", worker.__name__)
        monkeypatch.setattr(sys, "argv", ["worker", *argv])
        args = worker.parse_args()
        assert (args.base_model, args.base_name) == ("/models/base", "base")
        assert args.adapter == [f"a={folder}", f"b={folder}"]
        assert (args.max_lora_rank, args.tensor_parallel, args.max_num_seqs) == (16, 2, 5)
        assert (args.max_model_len, args.seed, args.cpu) == (4096, 7, False)
        assert args.trust_remote_code
        assert f"http://{args.host}:{args.port}" == service.url
        assert worker.lora_limits(args) == {
            "enable_lora": True,
            "max_loras": 2,
            "max_lora_rank": 16,
        }

    def test_a_worker_on_the_cpu_takes_its_command_line(self, worker, monkeypatch):
        service = plan_server(options(), "base").workers[0]
        monkeypatch.setattr(sys, "argv", ["worker", *service.command[3:]])
        args = worker.parse_args()
        assert (args.cpu, args.tensor_parallel, args.trust_remote_code) == (True, 1, False)
        assert worker.lora_limits(args) == {}  # LoRA is off until there is an adapter
        assert "CUDA_VISIBLE_DEVICES" not in service.env

    def test_what_computes_on_the_cpu_has_torchs_openmp_preloaded(self, monkeypatch):
        monkeypatch.setenv("LD_PRELOAD", "/their/own.so")
        theirs, *ours = plan_server(options(), "base").workers[0].env["LD_PRELOAD"].split(":")
        assert theirs == "/their/own.so"
        torch_folder = Path(importlib.util.find_spec("torch").origin).parent.parent
        assert ours, "no libgomp came with torch"
        assert all(Path(name).is_relative_to(torch_folder) for name in ours)
        assert Path(ours[0]).name.startswith("libgomp")
        assert all(Path(name).stat().st_size for name in ours)
        assert "LD_PRELOAD" not in plan_server(options(groups=[["0"]]), "base").workers[0].env


class TestTokens:
    """Promise 11 is about serving_ids; here are the worker's own."""

    MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"

    @pytest.fixture
    def tokens(self, worker, family):
        tokenizer = load_tokenizer(str(self.MODELS / family.name))
        itself = SimpleNamespace(tokenizer=tokenizer)
        return tokenizer, lambda **params: worker.LoraWorker._token_ids(itself, params)

    def test_of_a_conversation_are_those_that_training_is_compared_with(self, tokens):
        tokenizer, token_ids = tokens
        messages = [{"role": "user", "content": "Write a story. 写一个故事。"}]
        expected, _ = serving_ids(tokenizer, messages[0]["content"], "Once.")
        assert token_ids(messages=messages) == expected

    def test_of_an_opened_reply_go_on_without_an_end(self, tokens):
        tokenizer, token_ids = tokens
        user = {"role": "user", "content": "Write."}
        opened = [user, {"role": "assistant", "content": "Once upon"}]
        ids = token_ids(messages=opened, continue_final_message=True)
        assert tokenizer.decode(ids).endswith("Once upon")
        assert ids[: len(token_ids(messages=[user]))] == token_ids(messages=[user])

    def test_of_a_plain_prompt_are_the_tokenizers(self, tokens):
        tokenizer, token_ids = tokens
        assert token_ids(prompt="Once upon") == tokenizer("Once upon")["input_ids"]


class TestSampling:
    """What a request's fields become on their way into the engine."""

    @pytest.fixture
    def sampling(self, worker, monkeypatch):
        engine = SimpleNamespace(from_optional=lambda **fields: fields)
        monkeypatch.setattr(worker, "SamplingParams", engine)
        monkeypatch.setattr(
            worker, "RequestOutputKind", SimpleNamespace(FINAL_ONLY="final", DELTA="delta")
        )
        return lambda params, room: worker.LoraWorker._sampling(None, params, room)

    def test_every_field_that_is_given_arrives_and_no_other(self, sampling):
        given = dict.fromkeys(SAMPLING_FIELDS, 1)
        always = {"max_tokens": 40, "output_kind": "final"}
        assert sampling({**given, "model": "base"}, 40) == {**given, **always}
        assert sampling(dict.fromkeys(SAMPLING_FIELDS), 40) == always

    def test_only_a_reply_that_is_watched_comes_in_pieces(self, sampling):
        rules = [{"unit": "word", "n": 10}]
        pieces = {"output_kind": "delta", "stream_interval": WATCHED_TOKENS}
        assert sampling({"stop_repeat": rules}, 40) == {"max_tokens": 40, **pieces}
        assert sampling({"stop_repeat": []}, 40) == {"max_tokens": 40, "output_kind": "final"}

    def test_a_zero_is_a_value(self, sampling):
        assert sampling({"temperature": 0.0, "ignore_eos": False}, 9)["temperature"] == 0.0

    @pytest.mark.parametrize(("wanted", "given"), [(None, 40), (90, 40), (30, 30)])
    def test_the_reply_fits_into_the_context(self, sampling, wanted, given):
        assert sampling({"max_tokens": wanted}, 40)["max_tokens"] == given

    def test_the_engine_takes_every_field_from_json(self):
        # The constructor itself would take token ids as text: logit_bias comes as {"5": 1.0}.
        source = ast.parse((vllm_folder() / "sampling_params.py").read_text())
        method = next(
            node for node in ast.walk(source) if getattr(node, "name", "") == "from_optional"
        )
        taken_fields = {argument.arg for argument in method.args.args}
        assert {*SAMPLING_FIELDS, "max_tokens", "output_kind", "stream_interval"} <= taken_fields
