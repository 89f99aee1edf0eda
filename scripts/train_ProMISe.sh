#!/usr/bin/env bash
# Runs promise-train with the variable names of the reference implementation, all read from the environment:
#
#   IF_SPLIT_CSV=combined_5_1024.csv DATA_ROOT=data/polyp bash scripts/train_ProMISe.sh
#   net_name=IPS_GT GPU_num=1 EPOCH=50 IF_SPLIT_CSV=polyp.csv bash scripts/train_ProMISe.sh --workers 4
#
# The defaults are those of the published training. Further arguments are passed to promise-train.
# DRY_RUN=1 only prints the command.
set -euo pipefail
# shellcheck source=scripts/_reference.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_reference.sh"

net_name="${net_name:-APM_IPS_resnet}"  # or SAM_vit-b_APM_IPS_resnet_train; promise-train --list-nets lists all
SAM="${SAM:-}"                          # backbone; default: vit_b, or the backbone in a long net_name
GPU_num="${GPU_num-auto}"               # 0, 1, …; empty or none: CPU; unset: the first GPU if there is one, else the CPU
FREEZE_TYPE="${FREEZE_TYPE:-_FZ0}"      # _FZ0 … _FZ4; the underscore is optional
BATCH="${BATCH:-8}"
LOSS_TYPE="${LOSS_TYPE:-BCEDiceLoss}"   # BCEDiceLoss: --loss reference; bce, bce_dice, reference: unchanged
INITIAL_LR="${INITIAL_LR:-1e-5}"
EPOCH="${EPOCH:-200}"
LR_PARA="${LR_PARA:-LR_200_1e-7}"       # LR: constant; COS_200_1e-7: cosine over 200 epochs, final rate 1e-7
point_num="${point_num:-16}"
point_value="${point_value:-}"          # for example 1-1-0-0; default: the first half 1, the second half 0
transformer_train="${transformer_train:-train2_color}"
SEED="${SEED-152}"                      # empty: drawn at random and recorded in the run folder
PRECISION="${PRECISION:-fp32}"
IF_SPLIT_CSV="${IF_SPLIT_CSV:-}"        # required
DATA_ROOT="${DATA_ROOT:-}"              # root folder of the paths in the CSV
check_point_path="${check_point_path:-${SAM_CHECKPOINT:-}}"  # SAM weights; default: from the cache, else downloaded
BEST_MODEL_PATH="${BEST_MODEL_PATH:-runs}"                   # parent of the run folder

need IF_SPLIT_CSV "a CSV with the columns image_name,train_type,mask_name (data_format/README.md)"
device="$(device_of "$GPU_num")"
if [[ -z "$SAM" && "$net_name" != SAM_vit-* ]]; then SAM=vit_b; fi
FREEZE_TYPE="${FREEZE_TYPE#_}"
PROCESS_NAME="${PROCESS_NAME:-${net_name}_${FREEZE_TYPE}_${LR_PARA}_${LOSS_TYPE}_${INITIAL_LR}_${EPOCH}_${point_num}}"

command=(promise-train --net "$net_name")
if [[ -n "$SAM" ]]; then command+=(--sam "$SAM"); fi
if [[ -n "$check_point_path" ]]; then command+=(--sam-checkpoint "$check_point_path"); fi
command+=(--num-points "$point_num")
if [[ -n "$point_value" ]]; then command+=(--point-labels "$point_value"); fi
command+=(--freeze "$FREEZE_TYPE" --split-csv "$IF_SPLIT_CSV")
if [[ -n "$DATA_ROOT" ]]; then command+=(--data-root "$DATA_ROOT"); fi
command+=(
  --augment "$transformer_train" --epochs "$EPOCH" --batch-size "$BATCH" --loss "$(loss_of "$LOSS_TYPE")"
  --optimizer adam --lr "$INITIAL_LR" --scheduler "$LR_PARA" --select iou --precision "$PRECISION" --device "$device"
)
if [[ -n "$SEED" ]]; then command+=(--seed "$SEED"); fi
command+=(--output "${BEST_MODEL_PATH%/}/$PROCESS_NAME")
run_command "${command[@]}" "$@"
