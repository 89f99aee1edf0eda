# Sourced by train_ProMISe.sh and eval_ProMISe.sh: converts the reference implementation's variables.
# shellcheck shell=bash

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# need NAME DESCRIPTION: exits with an error if a required environment variable is unset or empty
need() {
  [[ -n "${!1:-}" ]] || fail "$1 is missing: $2"
}

# device_of GPU_NUM: '0' → cuda:0; '', none, cpu → cpu; PyTorch device names are returned unchanged
device_of() {
  case "$1" in
    '' | none | cpu) echo cpu ;;
    auto | mps | cuda | cuda:*) echo "$1" ;;
    *[!0-9]*) fail "GPU_num takes one number, none or auto, got '$1'; for several GPUs see docs/cluster.md" ;;
    *) echo "cuda:$1" ;;
  esac
}

# loss_of LOSS_TYPE: BCEDiceLoss of the reference implementation → reference; other names are returned unchanged
loss_of() {
  case "$1" in
    BCEDiceLoss | BCEDICELoss | BCEDice | BCE_Dice | BCE_DICE) echo reference ;;
    *) echo "$1" ;;
  esac
}

# run_command COMMAND ARGUMENT…: prints the command and executes it; with DRY_RUN=1 only prints it
run_command() {
  local line venv="${PROMISE_VENV:-$(dirname -- "${BASH_SOURCE[0]}")/../.venv}"
  printf -v line '%q ' "$@"
  echo "${line% }"
  [[ "${DRY_RUN:-0}" == 0 || -z "${DRY_RUN:-}" ]] || return 0
  if ! command -v "$1" >/dev/null 2>&1; then
    [[ -x "$venv/bin/$1" ]] || fail "$1 is not installed; run pip install -e '.[lite]' in the checkout (docs/install.md)"
    PATH="$venv/bin:$PATH"
  fi
  exec "$@"
}
