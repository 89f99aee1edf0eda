# Sourced by quickstart.sh, test.sh and .ci/run: makes the environment that they share; knows nothing else of them.
#
#   make_venv lite dev     makes .venv in the checkout and installs the package with these extras
#
# PYTHON        the Python that makes it, 3.11 or newer (default: python3)
# PROMISE_VENV  where it lies (default: .venv in the checkout)
# shellcheck shell=bash

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${PROMISE_VENV:-$ROOT/.venv}"

make_venv() {
  local python="${PYTHON:-python3}" extra stamp missing=""
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    check_python "$python" "set PYTHON to another one"
    echo "making the environment $VENV"
    "$python" -m venv "$VENV" || fail "$python cannot make an environment; on Debian and Ubuntu: apt install python3-venv"
  fi
  check_python "$VENV/bin/python" "remove $VENV and run this again"
  # A stamp an extra: what it was installed from. Another pyproject.toml or another place of the checkout installs anew.
  stamp="$(cksum <"$ROOT/pyproject.toml") $ROOT"
  for extra in "$@"; do
    [[ "$(cat "$VENV/.installed-$extra" 2>/dev/null)" == "$stamp" ]] || missing="$missing${missing:+,}$extra"
  done
  [[ -n "$missing" ]] || return 0
  echo "installing the package with [$missing] into $VENV; the first time this fetches PyTorch"
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
