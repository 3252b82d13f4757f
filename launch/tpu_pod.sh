#!/usr/bin/env bash
# Training on a Cloud TPU slice of several hosts, started from anywhere that has gcloud:
#
#   TPU=name ZONE=us-east5-a launch/tpu_pod.sh --config=configs/unet3d.py --workdir=/mnt/run ...
#
# Every host has the repository at REPOSITORY and mounts the same data and --workdir (Filestore, or
# a bucket through gcsfuse). config.mesh.data x config.mesh.space = the chips of the slice. Run it
# again after a preemption: training goes on from the last checkpoint.
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
REPOSITORY=${REPOSITORY:-lung_unet}

# JAX asks the slice's metadata for the processes and their coordinator.
printf -v command '%q ' env LUNG_UNET_BACKEND=tpu LUNG_UNET_COORDINATOR=auto launch/local.sh "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd $(printf '%q' "$REPOSITORY") && $command"
