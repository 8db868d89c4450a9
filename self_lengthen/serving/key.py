"""The API key of servers that more than this node can reach.

One random word in a file that its owner alone can read, in the run's folder, which every node sees;
each start of a run has a new one under a new name, so that no node reads an old one from its cache.
Controller, workers and API servers all ask for it, as `Authorization: Bearer KEY`.
"""

import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from self_lengthen.errors import UserError

KEY_FILES = ".api_key-*"
REFUSAL = {"object": "error", "message": "the API key is missing or wrong", "code": 40101}


def write_key(run: Path) -> Path:
    """A new key in the run's folder; those of earlier starts are removed."""
    for old in run.glob(KEY_FILES):
        old.unlink()
    file = run / KEY_FILES.replace("*", secrets.token_hex(8))
    beside = file.with_name(f"{file.name}.new")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_urlsafe(32))
    beside.replace(file)
    return file


def read_key(file: str) -> str:
    """The key in `file`, "" when no file is named. Raises UserError when there is none in it."""
    if not file:
        return ""
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api_key_file={file}: cannot be read ({error})") from error
    if not key:
        raise UserError(f"--api_key_file={file}: is empty; put a long random word into it")
    return key


def key_headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


class KeyRequired:
    """ASGI middleware: a request without the key gets 401 and reaches nothing."""

    def __init__(self, app: Any, key: str) -> None:
        self.app, self._wanted = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self._is_allowed(scope["headers"]):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(REFUSAL).encode()})

    def _is_allowed(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._wanted)
