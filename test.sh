#!/usr/bin/env bash
# The tests, in the project's own environment (made on first use).
#
#   bash test.sh           all: logic, lint, and the real stack end to end on the bundled models
#   bash test.sh fast      logic and lint only, some minutes
#   bash test.sh chaos     dozens of SIGKILLs at seeded moments, also of the real stack; long
#   bash test.sh PATH...   what you name, with pytest's own options
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash setup.sh
bin=$PWD/.venv/bin
lint() {
  "$bin/ruff" check .
  "$bin/ruff" format --check .
  git ls-files -z '*.sh' .ci/run | xargs -0 "$bin/shellcheck"
}
case ${1:-all} in
  all) lint && exec "$bin/python" -m pytest -m 'not chaos' ;;
  fast) lint && exec "$bin/python" -m pytest -m 'not real and not chaos' ;;
  chaos) exec "$bin/python" -m pytest -m chaos -s ;;
  *) exec "$bin/python" -m pytest "$@" ;;
esac
