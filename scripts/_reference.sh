# Sourced by train_ProMISe.sh and eval_ProMISe.sh: the original's spellings → this package's flags.
# shellcheck shell=bash

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# need NAME WHAT: an environment variable that has no default
need() {
  [[ -n "${!1:-}" ]] || fail "$1 is missing: $2"
}

# device_of GPU_NUM: '0' → cuda:0; '', none, cpu → cpu; a device of PyTorch stays
device_of() {
  case "$1" in
    '' | none | cpu) echo cpu ;;
    auto | mps | cuda | cuda:*) echo "$1" ;;
    *[!0-9]*) fail "GPU_num takes one number, none or auto, got '$1'; for several GPUs see the README" ;;
    *) echo "cuda:$1" ;;
  esac
}

# loss_of LOSS_TYPE: bce, bce_dice and reference are this package's; the original's BCEDiceLoss is 'reference'
loss_of() {
  case "$1" in
    BCEDiceLoss | BCEDICELoss | BCEDice | BCE_Dice | BCE_DICE) echo reference ;;
    *) echo "$1" ;;
  esac
}

# run_command COMMAND ARGUMENT…: print it, then become it; DRY_RUN=1 only prints
run_command() {
  local line venv="${PROMISE_VENV:-$(dirname -- "${BASH_SOURCE[0]}")/../.venv}"
  printf -v line '%q ' "$@"
  echo "${line% }"
  [[ "${DRY_RUN:-0}" == 0 || -z "${DRY_RUN:-}" ]] || return 0
  if ! command -v "$1" >/dev/null 2>&1; then
    [[ -x "$venv/bin/$1" ]] || fail "$1 is not installed: pip install -e '.[lite]' in the checkout, see the README"
    PATH="$venv/bin:$PATH"
  fi
  exec "$@"
}
