#!/usr/bin/env bash
# The final fine-tune: (query with its demand of length -> response), into a plain model folder.
# The same command continues an interrupted one; on several nodes start it on each, with WORLD_SIZE,
# RANK, MASTER_ADDR and MASTER_PORT set. `bash run_sft.sh --help` lists the options.
#
#   bash run_sft.sh --base_model=DIR --data=results/run/data/length_control/data.jsonl --output=DIR
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/setup.sh"
exec "$here/.venv/bin/python" -m self_lengthen.final_sft "$@"
