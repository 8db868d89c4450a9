#!/usr/bin/env bash
# Self-Lengthen on this node: macro-iterations of serving, steps 0-4 and fine-tuning of both roles.
# The same command continues an interrupted run. `bash run.sh --help` lists the options.
#
#   bash run.sh --demo                                             the bundled model, on the CPU
#   bash run.sh --base_model=DIR --instruct_count=1000 --max_iter=3
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/setup.sh"
exec "$here/.venv/bin/python" -m self_lengthen.run "$@"
