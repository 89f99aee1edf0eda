#!/usr/bin/env bash
# Kills training, caching of features, evaluation and prediction at random moments, resumes them, and compares the
# results with those of unbroken runs, bit for bit; see scripts/kill_test.py:
#
#   bash scripts/kill_test.sh                      30, 20, 10 and 10 kills
#   bash scripts/kill_test.sh --quick              2, 1, 1 and 1 kills
#   bash scripts/kill_test.sh --kills 9 9 9 9 --seed 1
set -euo pipefail

# shellcheck source=scripts/_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
[[ -x "$VENV/bin/promise-train" ]] || fail "the package is not installed: run scripts/test.sh once, or set PROMISE_VENV"
cd "$ROOT"
export OMP_NUM_THREADS=1 PYTHONPATH="$ROOT"
exec "$VENV/bin/python" scripts/kill_test.py "$@"
