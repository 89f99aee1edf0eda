#!/usr/bin/env bash
# Checks and measures the package on a GPU; docs/cluster.md explains the parts:
#
#   bash scripts/gpu_check.sh DATA OUT            DATA: folder with polyp.csv, which has train, val and test rows
#   bash scripts/gpu_check.sh DATA OUT --parts "dense paper"
#   bash scripts/gpu_check.sh DATA OUT --device cpu --quick
#
# Each part has a time limit; results of parts that were finished, and of trainings that were stopped, are kept. Writes
# OUT/gpu_check.json and OUT/gpu_check.md. Uses the package of this checkout with $PYTHON (default: python3).
set -uo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

DATA="" OUT="" DEVICE=cuda PARTS="" QUICK=0
while (($#)); do
  case "$1" in
    --device) DEVICE="${2:?--device requires a name}" && shift ;;
    --parts) PARTS="${2:?--parts requires names}" && shift ;;
    --quick) QUICK=1 ;;
    -h | --help) usage && exit 0 ;;
    -*) echo "gpu_check.sh: unknown option $1" >&2 && exit 2 ;;
    *) if [[ -z "$DATA" ]]; then DATA="$1"; elif [[ -z "$OUT" ]]; then OUT="$1"; else usage >&2 && exit 2; fi ;;
  esac
  shift
done
[[ -n "$DATA" && -n "$OUT" ]] || { usage >&2 && exit 2; }
[[ -f "$DATA/polyp.csv" ]] || { echo "gpu_check.sh: no polyp.csv in $DATA" >&2 && exit 1; }

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
PYTHON="${PYTHON:-python3}"
CORES="$(nproc)"
RUNS="$(mktemp -d)" # tables, checkpoints and features; what is worth keeping is copied to OUT
CSV="$RUNS/polyp.csv"
mkdir -p "$OUT"
rm -f "$OUT"/parts.tsv "$OUT"/part-* "$OUT"/log.txt
cp "$DATA/polyp.csv" "$CSV"
trap 'rm -rf -- "$RUNS"' EXIT

# part NAME SECONDS COMMAND…: run a command with a time limit, if --parts has it or is absent; its output goes to OUT/log.txt,
# and a failure does not end the script
part() {
  local name="$1" limit="$2" started status
  shift 2
  [[ -z "$PARTS" || " $PARTS " == *" ${name%-scores} "* ]] || return 1
  echo "== $name (at most $limit s)"
  started="$(date +%s)"
  timeout --signal=TERM --kill-after=20 "$limit" "$@" >"$RUNS/log" 2>&1
  status=$?
  { printf '\n== %s\n' "$name" && tr '\r' '\n' <"$RUNS/log" | tail -n 60; } >>"$OUT/log.txt"
  printf '%s\t%s\t%s\n' "$name" "$status" "$(($(date +%s) - started))" >>"$OUT/parts.tsv"
  ((status == 0)) || echo "   status $status: $(tail -n 1 "$RUNS/log" | cut -c 1-200)"
  return "$status"
}

check() { part "$1" "$2" "$PYTHON" "$ROOT/scripts/gpu_check.py" "$1" --device "$DEVICE" --out "$OUT" "${@:3}" "${quick[@]}"; }
bench() { part "$1" "$2" "$PYTHON" -m promise.cli.bench --device "$DEVICE" --output "$RUNS/$1" "${@:3}" && cp "$RUNS/$1/bench.json" "$OUT/part-$1.json"; }
train() { part "$1" "$2" "$PYTHON" -m promise.cli.train --split-csv "$CSV" --data-root "$DATA" --device "$DEVICE" --seed 0 --output "$RUNS/$1" --workers "$WORKERS" "${@:3}"; }

# The test rows of each data set whose name begins the names of its images, or all of polyp.csv
tests() {
  local name found=()
  for name in kvasir_seg cvc_clinicdb; do
    { head -n 1 "$CSV" && grep "$name.*,test," "$CSV"; } >"$RUNS/$name.csv" && found+=("$RUNS/$name.csv")
  done
  if ((${#found[@]})); then printf '%s\n' "${found[@]}"; else echo "$CSV"; fi
}
evaluate() {
  [[ -f "$RUNS/$1/best.safetensors" ]] || return 0
  cp "$RUNS/$1/log.csv" "$OUT/part-$1-log.csv"
  cp "$RUNS/$1/best.safetensors" "$OUT/$1.safetensors"
  mapfile -t csvs < <(tests)
  part "$1-scores" "$2" "$PYTHON" -m promise.cli.eval --ckpt "$RUNS/$1/best.safetensors" --split-csv "${csvs[@]}" --data-root "$DATA" --device "$DEVICE" \
    --cache off --output "$RUNS/$1/test" && cp "$RUNS/$1/test/summary.json" "$OUT/part-$1-scores.json"
}

# The paper's net by its published recipe: train2_color from pixels, Adam, constant rate of 1e-5; and the recommended net.
paper=(--net APM_IPS_resnet --sam lite_medsam --augment strong --batch-size 8 --loss reference --optimizer adam --lr 1e-5 --scheduler constant)
dense=(--config "$ROOT/configs/polyp_lite_medsam.yaml" --cache eval --cache-views 1 --feature-augment none)
if ((QUICK)); then
  quick=(--quick) WORKERS=0
  head -n 1 "$DATA/polyp.csv" >"$CSV"
  for split in train val test; do grep ",$split," "$DATA/polyp.csv" | head -n 2 >>"$CSV"; done
  check limits 60
  check nets 120
  check training 120
  check encoder 120 --sam lite_medsam --batches 1
  bench steps 120 --quick --images 2 --parts step:APM_IPS_resnet
  train paper 120 "${paper[@]}" --epochs 1
  train dense 120 "${dense[@]}" --epochs 1
  evaluate paper 60
  evaluate dense 60
else
  quick=() WORKERS=$((CORES > 2 ? CORES - 2 : CORES))
  check limits 30
  check nets 60
  part golden 60 env PROMISE_TEST_DEVICE="$DEVICE" "$PYTHON" -m pytest -q -p no:cacheprovider -m slow "$ROOT/tests/models/test_goldens.py"
  check training 60
  check encoder 120 --sam vit_b --batches 1 8 16
  check encoder-lite 40 --sam lite_medsam --batches 8 64
  bench steps 60 --sam lite_medsam --parts step:APM_IPS_resnet step:IPS_GT epoch evaluation
  train dense 100 "${dense[@]}" --epochs 18 --validate-every 3
  evaluate dense 30
  train paper 240 "${paper[@]}" --epochs 200 --validate-every 10
  evaluate paper 30
fi
[[ -f "$OUT/parts.tsv" ]] || { echo "gpu_check.sh: no part is named $PARTS" >&2 && exit 2; }
"$PYTHON" "$ROOT/scripts/gpu_check.py" report --device "$DEVICE" --out "$OUT" && cat "$OUT/gpu_check.md"
