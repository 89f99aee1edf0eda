#!/usr/bin/env bash
# From a fresh checkout to a trained net and pictures of what it does, on synthetic images and a CPU:
#
#   bash scripts/quickstart.sh
#
# Makes .venv, installs, writes samples/, scores APM_IPS_resnet untrained, trains it on a frozen LiteMedSAM, scores it
# again. The training's settings stand in configs/quickstart.yaml. May be run again; results are replaced.
set -euo pipefail

COUNT=200   # pictures, 7 : 1 : 2, that is 140 to train, 20 to choose an epoch and 40 to test on
SEED=7      # of the net's first weights, the order of the images and the augmentation
OVERLAYS=8  # pictures of results
RUN=runs/quickstart

# shellcheck source=scripts/_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
cd "$ROOT"
make_venv lite
PATH="$VENV/bin:$PATH"
export PROMISE_FEATURES="$ROOT/$RUN-features" # some gigabytes; kept when the script is stopped, removed at its end

step() { printf '\n== %s\n' "$*"; }

step "1/4 synthetic images → samples"
promise-phantom --output samples --count "$COUNT" --fractions 7 1 2 --seed 0

step "2/4 the untrained net on the test rows"
promise-eval --net APM_IPS_resnet --sam lite_medsam --split-csv samples/split.csv --seed "$SEED" \
  --output "$RUN/before" --overwrite >/dev/null

step "3/4 training"
promise-train --config configs/quickstart.yaml --seed "$SEED" --output "$RUN" --overwrite

step "4/4 the trained net on the test rows"
promise-eval --ckpt "$RUN/best.safetensors" --split-csv samples/split.csv --overlays "$OVERLAYS" \
  --beside "$RUN/before/summary.json" --output "$RUN/after" --overwrite

rm -rf -- "$PROMISE_FEATURES"
printf '\nPictures of truth (cyan), prediction (yellow) and prompts (green, red dots): %s\n' "$RUN/after/overlays"
