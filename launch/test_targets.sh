#!/usr/bin/env bash
# Makes .venv-targets if need be, then runs the tests of what the compilers of accelerators make of
# the programs: launch/test_targets.sh [arguments of pytest]
set -euo pipefail
LUNG_UNET_BACKEND=targets
WITH_DEV=1
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ $# -gt 0 ] || set -- -n 0 tests/benchmark/test_targets.py tests/benchmark/test_compiled.py
exec "$venv/bin/python" -m pytest "$@"
