#!/usr/bin/env bash
# Runs the tests in the virtual environment of the checkout:
#
#   bash scripts/test.sh                       all tests except the slow ones
#   bash scripts/test.sh --slow                all tests, including the slow ones (full-size SAM on the CPU); same as SLOW=1
#   bash scripts/test.sh --slow-only           only the slow tests
#   bash scripts/test.sh tests/test_losses.py  other arguments are passed to pytest
set -euo pipefail

# shellcheck source=scripts/_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
cd "$ROOT"
make_venv lite hybrid hf logging app export dicom docs dev

which=fast
[[ "${SLOW:-0}" == 0 || -z "${SLOW:-}" ]] || which=all
case "${1:-}" in
  --slow) which=all && shift ;;
  --slow-only) which=slow && shift ;;
esac
case "$which" in
  fast)
    options=(-m "not slow" -n auto --maxprocesses 4 --dist loadfile)
    export OMP_NUM_THREADS=1 # one process per core
    ;;
  slow) options=(-m slow -o timeout=1800) ;;
  all) options=(-o timeout=1800) ;;
esac
exec "$VENV/bin/python" -m pytest "${options[@]}" "$@"
