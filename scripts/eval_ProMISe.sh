#!/usr/bin/env bash
# Evaluate with the original's variable names; every one may be set in the environment:
#
#   TEST_check_point_path=runs/polyp/best.safetensors TEST_IF_SPLIT_CSV=split_Kvasir_1024.csv DATA_ROOT=data/polyp \
#     bash scripts/eval_ProMISe.sh
#   TEST_net_name=SAM_vit-b_APM_IPS_GT_resnet_train TEST_check_point_path=original.pt TEST_IF_SPLIT_CSV="a.csv b.csv" \
#     bash scripts/eval_ProMISe.sh --overlays 8
#
# Further arguments go to promise-eval. DRY_RUN=1 prints the command only.
set -euo pipefail
# shellcheck source=scripts/_original.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_original.sh"

GPU_num="${GPU_num-auto}"  # 0, 1, …; empty or none: CPU; unset: the first GPU, or the CPU where there is none
BATCH="${BATCH:-8}"
SAM="${SAM:-}"             # backbone of an original's file; default vit_b. This package's checkpoints name their own
SEED="${SEED-128}"         # of ground-truth points; empty: the checkpoint's
PRECISION="${PRECISION:-fp32}"
TEST_net_name="${TEST_net_name:-}"                  # required for an original's file; else the net of the checkpoint
TEST_check_point_path="${TEST_check_point_path:-}"  # required: best.safetensors, or the original's .pt
TEST_IF_SPLIT_CSV="${TEST_IF_SPLIT_CSV:-}"          # required: one CSV, or several with blanks between
TEST_SPLIT="${TEST_SPLIT-val}"                      # empty: test rows where there are any, else val
TEST_point_num="${TEST_point_num:-}"                # ground-truth points; default: the checkpoint's, 16 for IPS_GT files
DATA_ROOT="${DATA_ROOT:-}"                          # folder that the CSV's paths are re-rooted onto
check_point_path="${check_point_path:-${SAM_CHECKPOINT:-}}"  # SAM's weights; default: from the cache, else fetched
RESULT_DIR="${RESULT_DIR:-}"                        # default: eval beside the checkpoint

need TEST_check_point_path "the checkpoint to score: best.safetensors of a run, or the original's .pt file"
need TEST_IF_SPLIT_CSV "the CSV with image_name,train_type,mask_name (data_format/README.md)"
if [[ "$TEST_check_point_path" != *.safetensors ]]; then
  need TEST_net_name "an original's file does not say which net it holds, such as SAM_vit-b_APM_IPS_resnet_train"
fi
device="$(device_of "$GPU_num")"
read -r -a csvs <<<"$TEST_IF_SPLIT_CSV"

command=(promise-eval --ckpt "$TEST_check_point_path")
if [[ -n "$TEST_net_name" ]]; then command+=(--net "$TEST_net_name"); fi
if [[ -n "$SAM" ]]; then command+=(--sam "$SAM"); fi
if [[ -n "$check_point_path" ]]; then command+=(--sam-checkpoint "$check_point_path"); fi
command+=(--split-csv "${csvs[@]}")
if [[ -n "$DATA_ROOT" ]]; then command+=(--data-root "$DATA_ROOT"); fi
if [[ -n "$TEST_SPLIT" ]]; then command+=(--split "$TEST_SPLIT"); fi
command+=(--batch-size "$BATCH" --precision "$PRECISION" --device "$device")
if [[ -n "$TEST_point_num" ]]; then command+=(--num-points "$TEST_point_num"); fi
if [[ -n "$SEED" ]]; then command+=(--seed "$SEED"); fi
if [[ -n "$RESULT_DIR" ]]; then command+=(--output "$RESULT_DIR"); fi
run_command "${command[@]}" "$@"
