"""What the tests share. The stand-ins for a model are in fakes.py."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from self_lengthen.family import ModelFamily, load_family
from self_lengthen.runfolder import RunFolder
from self_lengthen.training.trainer import TRAINER

# A machine that does something else beside makes a test slow, not wrong.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# A shell's background job ignores Ctrl-C, nohup's the end of the terminal, and so would all that a
# test starts and sends these to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test loses power; on a busy disk each sync costs some milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


DECOY_WORDS = (
    *("fastchat.serve.controller", "vllm", "from", "self_lengthen.serving.worker", "torchrun"),
    *("step0_self_instruct.py", "step1_gen_initial_responses.py", "step2_extend_responses.py"),
    *("step3_filter_responses.py", "step4_make_sft_data.py", "llamafactory-cli", TRAINER, "run.sh"),
    *("fastchat", "tests.stand_in", "run", "guard.py", "train"),
)


@pytest.fixture(scope="session")
def decoy() -> Iterator[subprocess.Popen]:
    """Somebody else's process that looks like all of ours."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", *DECOY_WORDS], stdin=subprocess.PIPE
    )
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def the_decoy_lives_on(decoy: subprocess.Popen) -> Iterator[None]:
    """Promise 8, in every test: nobody is stopped for the words on a command line."""
    yield
    assert decoy.poll() is None, "a process that is not ours was stopped"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def qwen() -> ModelFamily:
    return load_family("qwen")


@pytest.fixture
def llama() -> ModelFamily:
    return load_family("llama")


@pytest.fixture(params=["qwen", "llama"])
def family(request: pytest.FixtureRequest) -> ModelFamily:
    """Each family in turn."""
    return load_family(request.param)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes the folder of a run that has only its run.json; options are given by name."""

    def make(family: ModelFamily, name: str = "run", **options: object) -> RunFolder:
        defaults = {
            "family": family.name,
            "base_model": "models/fake",
            "seeds": str(family.seeds),
            "seed": 42,
            "instruct_count": 4,
            "max_tokens": 256,
            "finish_ratio": 1.0,
            "trust_remote_code": False,
        }
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        text = json.dumps({"options": {**defaults, **options}})
        (path / "run.json").write_text(text, encoding="utf-8")
        return RunFolder(path)

    return make
