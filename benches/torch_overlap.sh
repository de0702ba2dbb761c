#!/usr/bin/env bash
# Pairs of DualPipeV in PyTorch: forward and backward interleaved against one after the other, which is PyTorch's own way. One pipeline rank,
# its experts over the GPUs; on one GPU it exchanges rows with itself, a copy.
# `torch_overlap.sh [GPUS] [DUALWEAVE]`: 2 GPUs, and the program of a release build. Python needs PyTorch; the package is taken from here.
set -euo pipefail
gpus=${1:-2} root=$(cd "$(dirname "$0")/.." && pwd)
dualweave=${2:-$root/target/release/dualweave}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$dualweave" schedule --kind dualpipev --pp 1 --micro-batches 8 --format torch-csv >"$work/v.csv"
export PYTHONPATH="$root/python/src${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
train() {
  timeout 300 python3 -m torch.distributed.run --nproc-per-node "$gpus" "$root/examples/pytorch/train.py" \
    --schedule "$work/v.csv" --ep "$gpus" --pairs both --check 2 --steps 20 --profile --rate 0.01 \
    --layers 8 --width 2048 --heads 16 --vocabulary 1024 --length 2048 --sequences 2 "$@" | grep -v '^step'
}
echo "8 of 64 experts of 512, and a shared one"
train --experts 64 --chosen 8 --expert-width 512 --shared-width 512
echo "2 of 8 experts of 4096"
train --experts 8 --chosen 2 --expert-width 4096 --shared-width 512
