#!/usr/bin/env bash
# Makes .venv-targets if need be (some 6 GB), then compiles for accelerators that are not here:
# launch/targets.sh --config=configs/unet3d.py:mlperf --target=h200,v5e [flags of the benchmark]
set -euo pipefail
LUNG_UNET_BACKEND=targets
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ $# -gt 0 ] || exit 0
exec "$venv/bin/python" -m lung_unet.benchmark --what=program "$@"
