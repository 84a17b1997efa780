#!/usr/bin/env bash
# Check dpce on a new GPU machine: tests, then short trainings whose losses are compared with those of the CPU.
#
#     examples/gpu_check.sh N
#
# N  number of GPUs to check, 1 or more; 0 runs the same checks in two CPU processes, to try this script
#
# Takes about ten minutes. Each check says what it expects, and the script stops at the first that fails. Results go to a
# temporary folder.
set -euo pipefail

if [[ $# -ne 1 || ! $1 =~ ^[0-9]+$ ]]; then
    echo "usage: examples/gpu_check.sh N, the number of GPUs" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[test]"
gpus=$1
if ((gpus)); then one=(--device cuda) all=(--gpus "$gpus") precisions=(bf16 fp16); else one=(--device cpu) all=(--processes 2) precisions=(bf16); fi
DPCE_WORKSPACE=$(mktemp -d)
export DPCE_WORKSPACE
trap 'rm -rf "$DPCE_WORKSPACE"' EXIT
metrics="$DPCE_WORKSPACE/scenes/stage1/metrics.jsonl"

expect() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
train() { dpce train-stage1 --fresh --epochs 1 "$@"; }
loss() { # of the last line of the log
    python -c 'import json, sys; print([json.loads(line) for line in open(sys.argv[1]) if "images_per_second" in line][-1]["loss"])' "$metrics"
}
same() { # value, reference, largest relative difference
    python -c 'import sys; a, b, most = map(float, sys.argv[1:]); print(f"loss {a:.5f}, on the CPU {b:.5f}"); sys.exit(not abs(a - b) <= most * b)' "$@" \
        || fail "the losses differ by more than $3 of their size"
}
again() { dpce train-stage1 --epochs 20 "$@"; }
start() { # a training in the background; returns when it has written its first checkpoint
    rm -f "$DPCE_WORKSPACE/scenes/stage1/last.pt"
    # A process in the background ignores Ctrl-C, but not if Python starts it.
    python -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); os.execvp("dpce", ["dpce", *sys.argv[1:]])' \
        train-stage1 --fresh --epochs 20 "$@" 2> "$DPCE_WORKSPACE/log" &
    job=$!
    while [[ ! -f $DPCE_WORKSPACE/scenes/stage1/last.pt ]]; do
        kill -0 "$job" 2> /dev/null || { cat "$DPCE_WORKSPACE/log" >&2; fail "the training ended too early"; }
        sleep 0.2
    done
}
ends_with() { # exit code, words of the message
    local code=0
    wait "$job" || code=$?
    tail -n 1 "$DPCE_WORKSPACE/log"
    [[ $code == "$1" ]] || fail "exit code $code instead of $1"
    grep -q "$2" "$DPCE_WORKSPACE/log" || fail "the message is missing: $2"
}

expect "tests with the marker gpu pass, and none is skipped for want of a GPU"
(cd "$root" && pytest -q -m gpu)

dpce prepare-vocab scenes --train-images 256 --test-images 32
dpce build-word2vec --train
train --device cpu
reference=$(loss)

expect "float32 on one device: the loss of the CPU, within 1 %"
train "${one[@]}"
same "$(loss)" "$reference" 0.01

expect "float32 on all devices: the same batch, the loss of the CPU, within 1 %"
train "${all[@]}"
same "$(loss)" "$reference" 0.01

for precision in "${precisions[@]}"; do
    expect "$precision with clipped gradients: the loss of the CPU, within 3 %"
    train "${all[@]}" --precision "$precision" --set stage1.clip_norm=100
    same "$(loss)" "$reference" 0.03
    expect "$precision with a sampled classifier and gradients clipped hard: finite"
    train "${all[@]}" --precision "$precision" --set stage1.clip_norm=1 --set model.classifier_sample_rate=0.5
done

if ((gpus)); then
    expect "--compile: the loss of the CPU, within 1 %; with several GPUs a warning"
    train "${all[@]}" --compile
    same "$(loss)" "$reference" 0.01
fi

expect "Ctrl-C: exit code 130, a message, and the same command continues"
start "${all[@]}"
kill -INT "$job"
ends_with 130 "the same command continues"
again "${all[@]}"

if ((gpus != 1)); then
    expect "a killed process: exit code 1, and a message that names the signal"
    start "${all[@]}"
    kill -KILL "$(pgrep -P "$job" | tail -n 1)"
    ends_with 1 "was killed by SIGKILL"
fi
printf '\nall checks passed\n'
