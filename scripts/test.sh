#!/usr/bin/env bash
# Run the tests in the checkout's own environment:
#
#   bash scripts/test.sh                       all but the slow ones
#   bash scripts/test.sh --slow                the slow ones too (full-size SAM on the CPU); SLOW=1 does the same
#   bash scripts/test.sh --slow-only           the slow ones alone
#   bash scripts/test.sh tests/test_losses.py  anything else goes to pytest
set -euo pipefail

# shellcheck source=scripts/_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
cd "$ROOT"
make_venv lite logging app export dicom docs dev

which=fast
[[ "${SLOW:-0}" == 0 || -z "${SLOW:-}" ]] || which=all
case "${1:-}" in
  --slow) which=all && shift ;;
  --slow-only) which=slow && shift ;;
esac
case "$which" in
  fast)
    options=(-m "not slow" -n auto --maxprocesses 4 --dist loadfile)
    export OMP_NUM_THREADS=1 # a process a core
    ;;
  slow) options=(-m slow -o timeout=1800) ;;
  all) options=(-o timeout=1800) ;;
esac
exec "$VENV/bin/python" -m pytest "${options[@]}" "$@"
