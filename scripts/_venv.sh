# Sourced by quickstart.sh, test.sh and .ci/run: creates the virtual environment that they share.
#
#   make_venv lite dev     creates .venv in the checkout and installs the package with these extras
#
# PYTHON        interpreter to create it with, 3.11 or newer (default: python3)
# PROMISE_VENV  path of the environment (default: .venv in the checkout)
# shellcheck shell=bash

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${PROMISE_VENV:-$ROOT/.venv}"

make_venv() {
  local python="${PYTHON:-python3}" extra stamp missing=""
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    check_python "$python" "set PYTHON to a newer interpreter"
    echo "creating the environment $VENV"
    "$python" -m venv "$VENV" || fail "$python cannot create an environment; on Debian and Ubuntu: apt install python3-venv"
  fi
  check_python "$VENV/bin/python" "remove $VENV and rerun the script"
  # One stamp file per extra. A new pyproject.toml or checkout path triggers a reinstallation.
  stamp="$(cksum <"$ROOT/pyproject.toml") $ROOT"
  for extra in "$@"; do
    [[ "$(cat "$VENV/.installed-$extra" 2>/dev/null)" == "$stamp" ]] || missing="$missing${missing:+,}$extra"
  done
  [[ -n "$missing" ]] || return 0
  echo "installing the package with [$missing] into $VENV; the first run downloads PyTorch"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -e "${ROOT}[$missing]"
  for extra in ${missing//,/ }; do
    echo "$stamp" >"$VENV/.installed-$extra"
  done
}

check_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$1 is not Python 3.11 or newer: $2"
}

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}
