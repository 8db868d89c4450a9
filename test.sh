#!/usr/bin/env bash
# The tests, in the project's own environment (made on first use).
#
#   bash test.sh           all: logic, lint, and the real stack end to end on the bundled models
#   bash test.sh fast      logic and lint only, under two minutes; as many at once as there are CPUs
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
fast() { "$bin/python" -m pytest -m 'not real and not chaos' -n logical --dist=loadfile; }
case ${1:-all} in
  all) lint; fast; exec "$bin/python" -m pytest -m 'real and not chaos' ;;
  fast) lint; fast ;;
  chaos) exec "$bin/python" -m pytest -m chaos -s ;;
  *) exec "$bin/python" -m pytest "$@" ;;
esac
