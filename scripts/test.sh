#!/usr/bin/env bash
# The style checks and the tests; arguments go to pytest: bash scripts/test.sh tests/test_box_ops.py -k giou
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup "$root/requirements-hf.txt" || echo "test: without transformers; its tests are skipped" >&2
cd "$root"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg
# No test reports to a server: there is no key, neither here nor in the user's own settings.
unset COMET_API_KEY
export COMET_CONFIG=/dev/null

"$VENV/bin/python" -m ruff check --quiet
"$VENV/bin/python" -m ruff format --check --quiet
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2) # which would answer the variable's number
if [ $# -eq 0 ]; then set -- -n $((cores < 8 ? cores : 8)) --dist worksteal; fi # each worker takes a gigabyte
exec "$VENV/bin/python" -m pytest "$@"
