#!/usr/bin/env bash
# lung_unet, nnU-Net and MONAI on the same scans, minutes and cores:
#   launch/side_by_side.sh --patients=DIR,DIR,DIR --out=DIR [--minutes=30] [flags of lung_unet.benchmark.peers]
# Each DIR is a LUNA16 folder of other patients, so that none is in two splits; or --luna16=DIR.
# Makes .venv, and .venv-peers for the peers unless PEERS_PYTHON names a Python that has them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -z "${PEERS_PYTHON:-}" ]; then
  PEERS_PYTHON=.venv-peers/bin/python
  wanted=$(cksum <requirements-peers.txt)
  if [ "$(cat .venv-peers/installed 2>/dev/null)" != "$wanted" ]; then
    echo "setting up .venv-peers"
    "$PEERS_PYTHON" -m pip --version >/dev/null 2>&1 || .venv/bin/python -m venv --clear .venv-peers
    "$PEERS_PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
    echo "$wanted" >.venv-peers/installed
  fi
fi
exec .venv/bin/python -m lung_unet.benchmark.peers --peers_python="$PEERS_PYTHON" "$@"
