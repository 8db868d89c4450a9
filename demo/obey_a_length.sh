#!/usr/bin/env bash
# From a finished demo to a model that obeys a length, by the commands of docs/collect.md and
# docs/evaluation.md, one after the other. The same command continues an interrupted one.
#
#   bash run.sh --demo && bash demo/obey_a_length.sh
#   bash run.sh --demo --family=qwen && bash demo/obey_a_length.sh qwen
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
family=${1:-llama}
run=results/demo-$family
model=demo/models/$family
chain=$run/obey_a_length
held_out=$chain/held_out.jsonl
epochs=7
[[ $family != qwen ]] || epochs=12 # at 7 it tells one demand from another hardly better than by luck
if [[ ! -d $model || $# -gt 1 ]]; then
  echo "obey_a_length.sh: give one family, llama or qwen" >&2
  exit 2
fi
if [[ ! -e $run/run.json ]]; then
  echo "obey_a_length.sh: $run holds no run; first: bash run.sh --demo --family=$family" >&2
  exit 2
fi

server=
stop_server() {
  [[ -z $server ]] || { kill -TERM "$server" && wait "$server" || true; }
  server=
}
trap stop_server EXIT
trap 'exit 130' INT TERM

serve() { # MODEL: sets url
  local ready=$chain/ready.json
  rm -f "$ready"
  bash run_server.sh --base_model="$1" --log_dir="$chain/logs" --ready_file="$ready" &
  server=$!
  until [[ -e $ready ]]; do # run_server.sh gives up by itself at its own deadline
    kill -0 "$server" 2>/dev/null || { wait "$server"; exit 1; }
    sleep 0.5
  done
  url=$(.venv/bin/python -c 'import json, sys; print(json.load(open(sys.argv[1]))["base_url"])' "$ready")
}

answer_held_out() { # LABEL
  .venv/bin/python eval/generate.py --base_url="$url" --model=base --benchmark="$held_out" \
    --out="$chain/$1" --max_tokens=1024 --samples=2
}

bash run_collect_data.sh --results="$run" --total_count=40 --max_iter=2
.venv/bin/python collect_data.py --results="$run"
.venv/bin/python -m demo.length_benchmark "$family" --not_in="$run/data/long.jsonl" --out="$held_out"

serve "$model"
.venv/bin/python eval/add_length_control.py "$run/data/long.jsonl" --base_url="$url" \
  --min_words=100 --max_words=600 --round_to=50:1
answer_held_out before
stop_server

bash run_sft.sh --base_model="$model" --output="$run/sft" \
  --data="$run/data/length_control/data.jsonl" \
  --finetuning=full --learning_rate=1e-3 --epochs="$epochs" --cutoff_len=4096 \
  --global_batch=4 --device_batch=4

serve "$run/sft/model"
answer_held_out after
stop_server

for label in before after; do
  .venv/bin/python eval/length_following_eval.py "$chain/$label/data.jsonl" | tee "$chain/$label/scores.txt"
done
.venv/bin/python eval/plot.py "$chain/before/data.jsonl" "$chain/after/data.jsonl" \
  --labels=before,after --out="$chain/plots"
