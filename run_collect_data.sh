#!/usr/bin/env bash
# More data from the last Generator of a finished run, in rounds, until there are --total_count
# responses. The same command continues an interrupted one. See docs/collect.md.
#
#   bash run_collect_data.sh --results=results/demo-llama --total_count=100
#   bash run_collect_data.sh --base_model=DIR --total_count=20000 --instruct_count=1000
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/setup.sh"
exec "$here/.venv/bin/python" -m self_lengthen.collect "$@"
