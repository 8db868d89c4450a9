"""FastChat's controller, which knows the workers of all nodes; with a key where others reach it.

python -m self_lengthen.serving.controller --port=P [--host=ADDRESS --api_key_file=FILE]
"""

import fastchat.serve.controller as fastchat_controller
import requests
import uvicorn

from self_lengthen.cli import Parser
from self_lengthen.serving.key import KeyRequired, key_headers, read_key

ASK_TIMEOUT_S = 5


class Controller(fastchat_controller.Controller):
    """Asks workers with the key."""

    def __init__(self, key: str) -> None:
        super().__init__("shortest_queue")
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between our own processes
        self._session.headers.update(key_headers(key))

    def get_worker_status(self, worker_name: str) -> dict | None:
        url = f"{worker_name}/worker_get_status"
        try:
            answer = self._session.post(url, timeout=ASK_TIMEOUT_S)
        except requests.RequestException:
            return None
        return answer.json() if answer.ok else None


if __name__ == "__main__":
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api_key_file", default="")
    args = parser.parse_args()
    key = read_key(args.api_key_file)
    fastchat_controller.controller = Controller(key)
    if key:
        fastchat_controller.app.add_middleware(KeyRequired, key=key)
    uvicorn.run(fastchat_controller.app, host=args.host, port=args.port, log_level="warning")
