# Makes .venv with the requirements of this machine's accelerator; sourced by the other scripts.
#
#   LUNG_UNET_BACKEND=cpu|cuda|tpu   overrides what is found; targets makes .venv-targets instead,
#                                    with the compilers of CUDA and TPU for a machine without them
#   PYTHON=python3.12                the Python (3.11 or newer) that makes the environment

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with venv was found; install one or set PYTHON" >&2
  return 1
}

find_backend() {
  if [ -n "${LUNG_UNET_BACKEND:-}" ]; then
    echo "$LUNG_UNET_BACKEND"
  elif nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo cuda
  elif ls /dev/accel* >/dev/null 2>&1 || [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}" ]; then
    echo tpu
  else
    echo cpu
  fi
}

backend=$(find_backend)
venv=.venv
case "$backend" in
  cpu) requirements=(-r requirements.txt) ;;
  cuda | tpu) requirements=(-r requirements.txt -r "requirements-$backend.txt") ;;
  targets) requirements=(-r requirements.txt -r requirements-targets.txt); venv=.venv-targets ;;
  *) echo "error: LUNG_UNET_BACKEND=$backend: choose cpu, cuda, tpu or targets" >&2; exit 1 ;;
esac
[ -z "${WITH_DEV:-}" ] || requirements+=(-r requirements-dev.txt)

# The stamp is written last, so that an interrupted installation is done again.
stamp="$venv/installed-$backend${WITH_DEV:+-dev}"
wanted=$(cat requirements*.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  python=$(find_python) || exit 1
  echo "setting up $venv for $backend ($("$python" --version))"
  # venv writes bin/activate last: without it, it was interrupted. uv's has no pip.
  { [ -e $venv/bin/activate ] &&
    { $venv/bin/python -c "import pip" || $venv/bin/python -m ensurepip; }; } >/dev/null 2>&1 ||
    "$python" -m venv --clear "$venv" || exit 1
  $venv/bin/python -m pip install --quiet --disable-pip-version-check "${requirements[@]}" || exit 1
  echo "$wanted" >"$stamp"
fi
