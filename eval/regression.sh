#!/usr/bin/env bash
# General abilities, which a model tuned for length should keep: MMLU, C-Eval, ARC-c and GSM8K with
# EleutherAI's lm-evaluation-harness. Run it on the model before and after, and compare.
#
#   vllm serve MODEL_DIR --served-model-name long --port 8001      # it answers with log-probabilities
#   bash eval/regression.sh --base_url=http://127.0.0.1:8001/v1 --model=long \
#     --tokenizer=MODEL_DIR --out=results/eval/regression/after
#
#   --base_url=URL    of the server, ends in /v1; run_server.sh's gives no log-probabilities
#   --model=NAME      as it is served
#   --tokenizer=DIR   the model's folder or its name on the hub
#   --out=DIR         a folder per task: results and every sample
#   --tasks=A,B       default: mmlu,ceval-valid,arc_challenge,gsm8k; smoke_choice,smoke_generate are
#                     eight questions of eval/smoke, to try a server without a download
#   --limit=N         only N questions a (sub)task: a trial, no result
#   --harness=DIR     the harness's own environment, made on first use (default: .venv-harness)
# A task whose folder is there is not run again. Exit status: 0 done, 1 failed, 2 a wrong option.
set -euo pipefail
harness_version=0.4.13 transformers_version=5.5.4 # only for the tokenizer, as in requirements.txt
base_url='' model='' tokenizer='' out='' limit=''
tasks=mmlu,ceval-valid,arc_challenge,gsm8k harness=.venv-harness
concurrency=16 context=8192 # tokens: 25 examples of ARC are more than the default 2048
# Examples in the prompt, as these scores are usually reported.
declare -A shots=([mmlu]=5 [ceval-valid]=5 [arc_challenge]=25 [gsm8k]=8)

say() { echo "regression: $*" >&2; }
leave() { say "$2" && exit "$1"; }

for option in "$@"; do
  case $option in
    --base_url=?* | --model=?* | --tokenizer=?* | --out=?* | --tasks=?* | --limit=?* | --harness=?*)
      name=${option%%=*} && printf -v "${name#--}" %s "${option#*=}" ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit ;;
    *) leave 2 "unknown option '$option'; see bash eval/regression.sh --help" ;;
  esac
done
for name in base_url model tokenizer out; do
  [[ -n ${!name} ]] || leave 2 "give --$name=...; see bash eval/regression.sh --help"
done
[[ $limit =~ ^[0-9]*$ ]] || leave 2 "--limit=$limit is no number of questions"
out=$(realpath -m "$out") harness=$(realpath -m "$harness")
[[ ! -d $tokenizer ]] || tokenizer=$(realpath "$tokenizer")
cd "$(dirname "${BASH_SOURCE[0]}")/.." # the smoke tasks name their data from here

if [[ ! -x $harness/bin/lm-eval ]]; then
  say "installing lm_eval $harness_version into $harness"
  python3 -m venv "$harness"
  "$harness/bin/pip" install -q "lm_eval[api]==$harness_version" \
    "transformers==$transformers_version"
fi
served="model=$model,base_url=${base_url%/}/completions,tokenizer=$tokenizer"
command=("$harness/bin/lm-eval" run --model local-completions --include_path eval/smoke
  --model_args "$served,max_length=$context,num_concurrent=$concurrency,max_retries=5"
  --log_samples --seed 42)
[[ -z $limit ]] || command+=(--limit "$limit")
export OPENAI_API_KEY=${OPENAI_API_KEY:-none} # the harness insists on one

mkdir -p "$out"
for task in ${tasks//,/ }; do
  [[ ! -d $out/$task ]] || { say "$task: done before, in $out/$task" && continue; }
  rm -rf "$out/.$task"
  "${command[@]}" --tasks "$task" --num_fewshot "${shots[$task]:-0}" --output_path "$out/.$task" ||
    leave 1 "$task failed; what it said is above"
  mv "$out/.$task" "$out/$task" # a folder that is there is complete
done
