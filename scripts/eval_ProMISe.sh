#!/usr/bin/env bash
# Runs promise-eval with the variable names of the reference implementation, all read from the environment:
#
#   TEST_check_point_path=runs/polyp/best.safetensors TEST_IF_SPLIT_CSV=split_Kvasir_1024.csv DATA_ROOT=data/polyp \
#     bash scripts/eval_ProMISe.sh
#   TEST_net_name=SAM_vit-b_APM_IPS_GT_resnet_train TEST_check_point_path=reference.pt TEST_IF_SPLIT_CSV="a.csv b.csv" \
#     bash scripts/eval_ProMISe.sh --overlays 8
#
# Further arguments are passed to promise-eval. DRY_RUN=1 only prints the command.
set -euo pipefail
# shellcheck source=scripts/_reference.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_reference.sh"

GPU_num="${GPU_num-auto}"  # 0, 1, …; empty or none: CPU; unset: the first GPU if there is one, else the CPU
BATCH="${BATCH:-8}"
SAM="${SAM:-}"             # backbone of a reference checkpoint (default: vit_b); our checkpoints store it
SEED="${SEED-128}"         # seed of ground-truth points; empty: the seed stored in the checkpoint
PRECISION="${PRECISION:-fp32}"
TEST_net_name="${TEST_net_name:-}"                  # required for a reference checkpoint; default: as stored
TEST_check_point_path="${TEST_check_point_path:-}"  # required: best.safetensors or a reference .pt
TEST_IF_SPLIT_CSV="${TEST_IF_SPLIT_CSV:-}"          # required: one CSV, or several separated by spaces
TEST_SPLIT="${TEST_SPLIT-val}"                      # empty: test rows if there are any, else val rows
TEST_point_num="${TEST_point_num:-}"                # ground-truth points; default: as stored, 16 for IPS_GT files
DATA_ROOT="${DATA_ROOT:-}"                          # root folder of the paths in the CSV
check_point_path="${check_point_path:-${SAM_CHECKPOINT:-}}"  # SAM weights; default: from the cache, else downloaded
RESULT_DIR="${RESULT_DIR:-}"                        # default: the folder eval next to the checkpoint

need TEST_check_point_path "the checkpoint to evaluate: best.safetensors of a run, or a reference .pt file"
need TEST_IF_SPLIT_CSV "a CSV with the columns image_name,train_type,mask_name (data_format/README.md)"
if [[ "$TEST_check_point_path" != *.safetensors ]]; then
  need TEST_net_name "a reference checkpoint does not store its net; set it, for example to SAM_vit-b_APM_IPS_resnet_train"
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
