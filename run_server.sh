#!/usr/bin/env bash
# This node's share of the server: FastChat controller and API server, one vLLM worker per GPU group.
# Stays in the foreground; Ctrl-C stops all of it. `bash run_server.sh --help` lists the options.
#
#   bash run_server.sh --base_model=DIR --port=8000
#   bash run_server.sh --base_model=DIR --adapter=my-generator=results/run/iter_3/lora/gen_sft
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/setup.sh"
exec "$here/.venv/bin/python" -m self_lengthen.serving.server "$@"
