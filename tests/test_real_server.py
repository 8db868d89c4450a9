"""run_server.sh on the bundled model: real controller, API server, vLLM worker with an adapter."""

import asyncio
import json
import socket
from pathlib import Path

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from self_lengthen.endpoint import ContextOverflowError, Endpoint, EndpointError, Sampling
from self_lengthen.family import NgramRule
from self_lengthen.files import read_json
from self_lengthen.pace import Load
from self_lengthen.repetition import has_repeat
from self_lengthen.serving.load import CPU_NEARLY_FREE
from self_lengthen.serving.plan import CPU_SEQUENCES
from tests.real import ROOT, Script, wait_for

pytestmark = pytest.mark.real

MODEL = ROOT / "demo" / "models" / "llama"
QUESTION = "Write a long article about the quiet river, covering trade, music and design."
READY_S, STOP_S = 300, 30


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A LoRA adapter of rank 4 with weights that change what the model says."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    options = [f"--base_model={MODEL}", f"--adapter=odd={adapter}", f"--log_dir={folder}"]
    ready = folder / "ready.json"
    script = Script("run_server.sh", *options, f"--ready_file={ready}", log=folder / "out.log")
    try:
        wait_for(lambda: ready.exists() or script.process.poll() is not None, READY_S, "readiness")
        assert script.process.poll() is None, script.text()
        yield script, read_json(ready)["base_url"], folder
    finally:
        if script.process.poll() is None:
            script.interrupt()
            script.wait(STOP_S)


def ask(base_url: str, model: str = "base", question: str = QUESTION, seed: int = 7, **options):
    rules = options.pop("stop_repeat", ())
    sampling = Sampling(max_tokens=options.pop("max_tokens", 40), stop_repeat=rules)

    async def one():
        async with Endpoint(base_url, retry_deadline_s=1) as endpoint:
            return await endpoint.chat(model, question, sampling, seed=seed, **options)

    return asyncio.run(one())


def worker_url(folder: Path) -> str:
    """Of the only worker, as the controller's log has it."""
    log = (folder / "controller.log").read_text()
    return log.split("Register done: ")[1].split(",")[0]


def test_ready_is_said_when_base_and_adapter_answer(server):
    script, base_url, _ = server
    assert f"ready: {base_url} serves base, odd" in script.text()
    models = {model["id"] for model in httpx.get(f"{base_url}/models").json()["data"]}
    assert models == {"base", "odd"}


def test_the_adapter_answers_by_its_name_and_differs_from_the_base(server):
    _, base_url, _ = server
    assert ask(base_url, "odd").text != ask(base_url, "base").text


def test_the_base_model_says_beside_the_adapter_what_it_says_alone(server):
    """Mostly: in 16 bits a sum depends on what else is in the batch, and a near choice on that."""
    _, base_url, _ = server
    few, seeds = {"max_tokens": 16}, range(10)

    async def together() -> list[str]:
        async with Endpoint(base_url) as endpoint:
            asked = [(name, seed) for seed in seeds for name in ("odd", "base")]
            replies = (endpoint.chat(n, QUESTION, Sampling(**few), seed=s) for n, s in asked)
            return [reply.text for reply in await asyncio.gather(*replies)]

    base, odd = ([ask(base_url, n, seed=s, **few).text for s in seeds] for n in ("base", "odd"))
    replies = asyncio.run(together())
    assert same(base, odd) <= 2, "no mistake would show"
    assert same(replies[0::2], odd) >= 6
    assert same(replies[1::2], base) >= 6


def same(texts: list[str], others: list[str]) -> int:
    return sum(text == other for text, other in zip(texts, others, strict=True))


def test_the_same_seed_gives_the_same_text(server):
    _, base_url, _ = server
    assert ask(base_url).text == ask(base_url).text


def test_a_watched_reply_is_the_same_text_and_ends_at_its_first_repetition(server):
    _, base_url, _ = server
    rules = (NgramRule("word", 1),)  # of some seed's answers one says a word again and goes on
    answers = ((seed, ask(base_url, max_tokens=400, seed=seed)) for seed in range(20))
    seed, whole = next((s, a) for s, a in answers if has_repeat(rules, a.text[:-40]))
    harmless = (NgramRule("word", 300),)
    assert ask(base_url, max_tokens=400, seed=seed, stop_repeat=harmless) == whole
    stopped = ask(base_url, max_tokens=400, seed=seed, stop_repeat=rules)
    assert stopped.finish_reason == "repetition"
    assert has_repeat(rules, stopped.text) and whole.text.startswith(stopped.text)
    assert stopped.completion_tokens < whole.completion_tokens


def test_the_engines_load_is_told(server):
    _, base_url, _ = server

    async def load():
        async with Endpoint(base_url) as endpoint:
            return await endpoint.load()

    assert asyncio.run(load()) == Load(1, CPU_SEQUENCES, CPU_NEARLY_FREE, 0, 0, 1.0)


def test_an_opened_turn_is_continued_from_there(server):
    _, base_url, _ = server
    reply = ask(base_url, opened_with="The trade of the river begins with the")
    assert reply.text.startswith(" ")
    assert not reply.text.lstrip().startswith("The trade of the river begins")


def test_the_prompt_has_one_bos_and_the_template_of_the_tokenizer(server):
    from transformers import AutoTokenizer

    _, base_url, _ = server
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ask(base_url).prompt_tokens == len(ids)


def test_max_tokens_is_clamped_to_the_context_and_a_longer_prompt_refused(server):
    _, base_url, _ = server
    reply = ask(base_url, question="river " * 4000, max_tokens=16384)
    assert reply.prompt_tokens + reply.completion_tokens <= 4096
    with pytest.raises(ContextOverflowError, match="the context 4096"):
        ask(base_url, question="river " * 5000)


def test_an_unknown_model_is_refused_with_the_names_that_are_served(server):
    _, base_url, _ = server
    with pytest.raises(EndpointError, match="model other is not served: base, odd"):
        ask(base_url, "other")


def test_a_generation_whose_client_goes_away_is_aborted(server):
    _, base_url, folder = server
    health = f"{worker_url(folder)}/health"
    request = {"model": "base", "max_tokens": 4000, "ignore_eos": True}
    request["messages"] = [{"role": "user", "content": QUESTION}]

    async def leave_early() -> int:
        async with httpx.AsyncClient() as client:
            posting = asyncio.create_task(
                client.post(f"{base_url}/chat/completions", json=request, timeout=60)
            )
            for _ in range(100):
                await asyncio.sleep(0.05)
                if (await client.get(health)).json()["running"] == 1:
                    break
            running = (await client.get(health)).json()["running"]
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            return running

    assert asyncio.run(leave_early()) == 1
    wait_for(lambda: httpx.get(health).json()["running"] == 0, 5, "the abort")


def test_a_port_in_use_is_one_line_and_status_2(server, tmp_path):
    _, base_url, _ = server
    port = httpx.URL(base_url).port
    options = [f"--base_model={MODEL}", f"--port={port}", f"--log_dir={tmp_path / 'logs'}"]
    second = Script("run_server.sh", *options, log=tmp_path / "second.log")
    assert second.wait(60) == 2
    assert f"run_server.sh: --port={port}: cannot listen there" in second.text()
    assert not (tmp_path / "logs").exists()


def test_everything_listens_on_loopback_only(server):
    _, base_url, folder = server
    for url in (base_url, worker_url(folder)):
        port = httpx.URL(url).port
        listening = {
            line.split()[1].partition(":")[0]
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(table).read_text().splitlines()[1:]
            if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port
        }
        assert listening == {"0100007F"}, json.dumps(sorted(listening))


def test_after_an_interrupt_no_process_is_left_and_the_port_is_free(server):
    script, base_url, _ = server  # the last test of this module: it stops the server
    script.interrupt()
    assert script.wait(STOP_S) == 130
    assert script.gone(), script.left()
    with socket.socket() as probe:  # closed connections may linger; a listener may not
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", httpx.URL(base_url).port))
