#!/usr/bin/env bash
# What a GPU is asked for: the tests that need one, then training at the shapes of 0.5B and 7B models, each
# number format, against TRL. A variant takes a minute or two, most of it start-up: name some, or take hours.
#
#     pip install trl liger-kernel && scripts/bench/gpu.sh
#     ROUNDS=1 scripts/bench/gpu.sh "0.5B bf16 4" "7B bf16 1"    # some of it: shape, format, answers a prompt
#     DRY=1 scripts/bench/gpu.sh    # the same on a tiny shape, to see that it runs; a CPU will do
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
# The format of most interest first.
wanted=("0.5B bf16 4" "7B bf16 4" "0.5B bf16 1" "7B bf16 1" "0.5B fp16 4" "0.5B tf32 4" "7B fp16 4" "0.5B fp16 1" "0.5B tf32 1")
[ $# -gt 0 ] && wanted=("$@")
rounds=${ROUNDS:-3}
if [ -n "${DRY:-}" ]; then
    wanted=("tiny bf16 4" "tiny fp16 1") rounds=1
fi
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null || true
[ $# -gt 0 ] || "$python" -m pytest -q -m gpu tests/invariant/test_gpu.py
for one in "${wanted[@]}"; do
    read -r shape format survivors <<<"$one"
    case $shape in
    tiny) sizes=(--batch 512 --length 512 --limit 32 --held-out 8 --rows-per-step 8) variants=ours,trl ;;
    0.5B) sizes=(--batch 32768 --length 16384 --limit 2048 --rows-per-step 256 --epochs 2) variants=ours,compiled,trl,liger ;;
    7B) sizes=(--batch 8192 --length 8192 --limit 256 --held-out 0 --rows-per-step 64 --epochs 2) variants=ours,trl,liger ;;
    esac
    # The mask of a packed row, which TRL needs in 32 bits, is as long as it is wide.
    [ "$format" = tf32 ] && sizes+=(--length 4096)
    echo "== $shape, $format, $survivors answers a prompt"
    "$python" scripts/bench/train.py --shape "$shape" --compute "$format" --survivors "$survivors" \
        --variants "${VARIANTS:-$variants}" --rounds "$rounds" --made "$made" "${sizes[@]}"
done
