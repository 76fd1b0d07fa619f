#!/usr/bin/env bash
# What a GPU is asked for: training at the shapes of 0.5B and 7B models, each number format, against TRL.
#
#     pip install trl && scripts/bench/gpu.sh
#     DRY=1 scripts/bench/gpu.sh    # the same on a tiny shape, to see that it runs; a CPU will do
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
shapes="0.5B 7B" formats="bf16 tf32 fp16" sizes="--batch 8192 16384 --length 2048 4096 --limit 512"
variants=ours,trl
if [ -n "${DRY:-}" ]; then
    shapes=tiny formats="bf16 fp16" sizes="--batch 512 --length 512 --limit 32 --held-out 8 --rounds 1"
    "$python" -c "import trl" 2>/dev/null || variants=ours
fi
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null || true
for shape in $shapes; do
    for format in $formats; do
        # 7B in 32 bits is for cards with more memory than most have.
        [ "$shape $format" = "7B tf32" ] && continue
        for survivors in 1 4; do
            echo "== $shape, $format, $survivors answers a prompt"
            # shellcheck disable=SC2086
            "$python" scripts/bench/train.py --shape "$shape" --compute "$format" \
                --survivors "$survivors" --variants "$variants" $sizes
        done
    done
done
