#!/usr/bin/env bash
# Trains and evaluates a net on synthetic images, starting from a fresh checkout; runs on a CPU:
#
#   bash scripts/quickstart.sh
#
# Creates .venv, installs the package and writes samples/. Evaluates an untrained APM_IPS_resnet, trains it on a
# frozen LiteMedSAM and evaluates it again. The training settings are in configs/quickstart.yaml. Existing results
# are replaced.
set -euo pipefail

COUNT=200   # images, split 7 : 1 : 2 into 140 training, 20 validation and 40 test images
SEED=7      # seed of the initial weights, the image order and the augmentation
OVERLAYS=8  # number of overlays to draw
RUN=runs/quickstart

# shellcheck source=scripts/_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
cd "$ROOT"
make_venv lite
PATH="$VENV/bin:$PATH"
export PROMISE_FEATURES="$ROOT/$RUN-features" # a few gigabytes; removed at the end, kept if the script is interrupted

step() { printf '\n== %s\n' "$*"; }

step "1/4 synthetic images → samples"
promise-phantom --output samples --count "$COUNT" --fractions 7 1 2 --seed 0

step "2/4 evaluation of the untrained net on the test rows"
promise-eval --net APM_IPS_resnet --sam lite_medsam --split-csv samples/split.csv --seed "$SEED" \
  --output "$RUN/before" --overwrite >/dev/null

step "3/4 training"
promise-train --config configs/quickstart.yaml --seed "$SEED" --output "$RUN" --overwrite

step "4/4 evaluation of the trained net on the test rows"
promise-eval --ckpt "$RUN/best.safetensors" --split-csv samples/split.csv --overlays "$OVERLAYS" \
  --beside "$RUN/before/summary.json" --output "$RUN/after" --overwrite

rm -rf -- "$PROMISE_FEATURES"
printf '\nOverlays of ground truth (cyan), prediction (yellow) and prompts (green and red dots): %s\n' "$RUN/after/overlays"
