# The whole project for a machine with NVIDIA GPUs (driver 570 or newer, NVIDIA Container Toolkit).
#
#     docker build --tag query-matching --build-arg UID=$(id -u) --build-arg GID=$(id -g) .
#     mkdir -p data checkpoint
#     docker run --rm --interactive --tty --gpus all --ipc=host \
#         --volume "$PWD/data:/data" --volume "$PWD/checkpoint:/checkpoint" query-matching
#
# gives a shell in which the README's commands work as they stand: `data` and `checkpoint` are the two volumes.
# A command after the image's name runs in place of the shell: `... query-matching bash scripts/demo.sh`.
# Comet's key goes in by `--env COMET_API_KEY`.
#
# Shared memory: a container gets 64 MB of it (/dev/shm). The loaders need none, since they decode in threads, but
# the processes of a run on several GPUs (torchrun, NCCL) pass gradients through it, and too little of it ends in
# "bus error". `--ipc=host` gives the host's; where that is not allowed, take `--shm-size=8g`.
#
# The base image: torch's own packages bring CUDA's mathematical libraries, cuDNN and NCCL, so a `-runtime` or
# `-cudnn-runtime` image would hold them twice. `-base` is the CUDA runtime and what `--gpus` needs.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# A compiler and Python's headers are for `--compile`, which builds its kernels' launchers with them.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
# Downloaded weights stay in the volume.
ENV TORCH_HOME=/checkpoint/torch

# The large layer: releases built for CUDA 12.8, the base image's. Newer ones may want a newer driver.
ARG TORCH=2.8.0
ARG TORCHVISION=0.23.0
RUN python3 -m venv $VENV && pip install torch==$TORCH torchvision==$TORCHVISION

# The other requirements, again only when they change.
WORKDIR /workspace
COPY requirements.txt ./
COPY scripts/setup.sh scripts/
RUN bash scripts/setup.sh

# A user with the ids of the one who builds, so that files in the volumes belong to them. The ids may be taken in
# the base image, hence --non-unique.
ARG UID=1000
ARG GID=1000
RUN groupadd --non-unique --gid $GID user \
    && useradd --non-unique --uid $UID --gid $GID --create-home --shell /bin/bash user \
    && mkdir --parents /data /checkpoint \
    && ln -s /data /checkpoint /workspace \
    && chown --recursive --no-dereference $UID:$GID /data /checkpoint /workspace
COPY --chown=$UID:$GID . .
USER user
VOLUME ["/data", "/checkpoint"]
CMD ["bash"]
