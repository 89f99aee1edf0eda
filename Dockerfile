# Container images of ProMISe for CPUs and for NVIDIA GPUs:
#
#   docker build -t promise:cpu .
#   docker build -t promise:cuda --target cuda .
#   docker run --rm -v "$PWD:/data" -v promise:/cache promise:cpu promise-train --list-nets
#   docker run --rm -v "$PWD:/data" -v promise:/cache --gpus all promise:cuda promise-train --split-csv polyp.csv
#   docker run --rm -v "$PWD:/data" -v promise:/cache -p 127.0.0.1:7860:7860 promise:cpu \
#     promise-app --ckpt runs/polyp/best.safetensors --host 0.0.0.0
#
# Linted with hadolint in the tests; not built yet, because Docker was not available during development.
# /data is the working directory. /cache stores weights and features between runs.

FROM python:3.12-slim-bookworm AS base
# Libraries required by OpenCV. Not pinned: Debian keeps only the newest build of each package.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 promise \
 && mkdir -p /data /cache \
 && chown promise:promise /data /cache
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PROMISE_CACHE=/cache/weights \
    PROMISE_FEATURES=/cache/features
WORKDIR /src

FROM base AS cuda
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
ARG CUDA=cu130
RUN pip install "torch==${TORCH}" "torchvision==${TORCHVISION}" --index-url "https://download.pytorch.org/whl/${CUDA}"
COPY pyproject.toml README.md LICENSE ./
COPY promise promise
# Installs the package; pyproject.toml constrains the versions of its dependencies.
# hadolint ignore=DL3013
RUN pip install ".[lite,app]"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
CMD ["promise-train", "--help"]

# The last stage is the default target.
FROM base AS cpu
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
RUN pip install "torch==${TORCH}" "torchvision==${TORCHVISION}" --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY promise promise
# Installs the package; pyproject.toml constrains the versions of its dependencies.
# hadolint ignore=DL3013
RUN pip install ".[lite,app]"
USER 1000
WORKDIR /data
CMD ["promise-train", "--help"]
