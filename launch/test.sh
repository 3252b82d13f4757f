#!/usr/bin/env bash
# Makes the environment if need be, then runs the tests: launch/test.sh [arguments of pytest]
set -euo pipefail
WITH_DEV=1
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec .venv/bin/python -m pytest "$@"
