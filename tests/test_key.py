"""Promise 10: what others can reach asks for a key, every part of it, and the key stays secret."""

import asyncio
import stat
import sys
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from self_lengthen.errors import UserError
from self_lengthen.serving import server
from self_lengthen.serving.key import KeyRequired, key_headers, read_key, write_key
from self_lengthen.serving.plan import ServerOptions, plan_server


class TestFile:
    def test_promise_10_its_owner_alone_can_read_it(self, tmp_path):
        file = write_key(tmp_path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(read_key(str(file))) >= 32

    def test_each_start_has_another_under_another_name_and_old_ones_go(self, tmp_path):
        first = write_key(tmp_path)
        key = read_key(str(first))
        second = write_key(tmp_path)
        assert second != first and read_key(str(second)) != key
        assert list(tmp_path.iterdir()) == [second]

    def test_no_file_is_no_key(self):
        assert read_key("") == ""
        assert key_headers("") == {}

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(UserError, match=f"^--api_key_file={tmp_path}/none: cannot be read"):
            read_key(f"{tmp_path}/none")

    def test_an_empty_file_is_no_key(self, tmp_path):
        (tmp_path / "key").write_text("\n")
        with pytest.raises(UserError, match="is empty"):
            read_key(str(tmp_path / "key"))


class TestRequests:
    @pytest.fixture
    def ask(self):
        app = FastAPI()
        reached = []

        @app.post("/worker_generate")
        async def generate() -> str:
            reached.append(1)
            return "text"

        app.add_middleware(KeyRequired, key="secret")

        def post(headers: dict[str, str]) -> tuple[int, int]:
            async def main() -> int:
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                    return (await client.post("/worker_generate", headers=headers)).status_code

            return asyncio.run(main()), len(reached)

        return post

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "secret"},
            {"Authorization": "Bearer secre"},
            {"Authorization": "Bearer secret2"},
            {"X-Api-Key": "secret"},
        ],
    )
    def test_promise_10_without_the_key_a_request_reaches_nothing(self, ask, headers):
        assert ask(headers) == (401, 0)

    def test_with_it_a_request_is_served(self, ask):
        assert ask(key_headers("secret")) == (200, 1)


def options(tmp_path, **given: object) -> ServerOptions:
    return ServerOptions("/model", {}, [[], []], 4096, log_dir=tmp_path, **given)


def test_promise_10_every_process_of_a_server_asks_for_the_key(tmp_path):
    plan = plan_server(options(tmp_path, host="127.0.0.2", api_key_file="/run/key"), "base")
    assert len(plan.services) == 4
    for service in plan.services:
        assert "--api_key_file=/run/key" in service.command
        assert "--host=127.0.0.2" in service.command
        assert service.url.startswith("http://127.0.0.2:")


def test_a_node_that_joins_starts_no_controller(tmp_path):
    plan = plan_server(options(tmp_path, controller="http://10.0.0.1:21001"), "base")
    assert [service.name for service in plan.services] == ["api_server", "worker_0", "worker_1"]
    for service in plan.services:
        assert "--controller=http://10.0.0.1:21001" in service.command


def test_promise_10_a_server_that_others_reach_does_not_start_without_a_key(monkeypatch):
    argv = ["server", "--base_model=demo/models/llama", "--host=0.0.0.0"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(server, "plan_server", lambda *_: SimpleNamespace(services=[]))
    with pytest.raises(UserError) as refusal:
        server.main()
    assert str(refusal.value) == (
        "--host=0.0.0.0: others could reach the server; give --api_key_file=FILE with a long "
        "random word in it, which requests must bring as a bearer token"
    )
