#!/usr/bin/env bash
# Trains and evaluates a net on the dermoscopy images of data_format/skin, starting from a fresh checkout; runs on a CPU:
#
#   bash scripts/quickstart.sh
#
# Creates .venv, installs the package, trains APM_dense on a frozen LiteMedSAM, starting from the bundled checkpoint for
# polyps, and evaluates it on 60 test images beside frozen SAM with a point in the centre of the image and with the box of
# the ground truth. The training settings are in configs/quickstart.yaml. Existing results are replaced.
set -euo pipefail

SEED=7      # seed of the initial weights, the image order and the augmentation
OVERLAYS=8  # number of overlays to draw
DATA=data_format/skin/split.csv
RUN=runs/quickstart

# shellcheck source=scripts/_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
cd "$ROOT"
make_venv lite
PATH="$VENV/bin:$PATH"
export PROMISE_FEATURES="$ROOT/$RUN-features" # 1 or 2 GB; removed at the end, kept if the script is interrupted

step() { printf '\n== %s\n' "$*"; }

step "1/3 training"
promise-train --config configs/quickstart.yaml --init-from polyp --seed "$SEED" --output "$RUN" --overwrite

step "2/3 the trained net on the test rows: automatic prompts"
promise-eval --ckpt "$RUN/best.safetensors" --split-csv "$DATA" --overlays "$OVERLAYS" --output "$RUN/test" --overwrite >/dev/null

step "3/3 frozen SAM on the test rows: a point in the centre of the image, then the box of the ground truth"
promise-eval --net SAM --sam lite_medsam --prompts centre --split-csv "$DATA" --output "$RUN/centre" --overwrite >/dev/null
promise-eval --net SAM --sam lite_medsam --prompts gt-box --split-csv "$DATA" --output "$RUN/gt-box" --overwrite \
  --brief --beside "$RUN/test/summary.json" "$RUN/centre/summary.json"
promise-report "$RUN" --overwrite

rm -rf -- "$PROMISE_FEATURES"
printf '\nReport:   %s\nOverlays: %s (ground truth cyan, prediction yellow, boxes green)\n' "$RUN/report.html" "$RUN/test/overlays"
cat <<'END'
The paper's net on the same images:
  promise-train --net APM_IPS_resnet --config configs/quickstart.yaml --feature-augment symmetries --epochs 24 --lr 3e-4 --output runs/paper
END
