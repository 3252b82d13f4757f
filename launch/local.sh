#!/usr/bin/env bash
# Makes the environment if need be, then runs the main job: launch/local.sh [flags of lung_unet.main]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
arguments=" $* "
case "$arguments" in
  *" --workdir"* | *" --help"* | *" --print_model"*) ;;
  *) set -- "$@" --workdir=runs/local ;;
esac
exec .venv/bin/python -m lung_unet.main "$@"
