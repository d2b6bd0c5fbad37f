# The repository with everything a run needs, for GKE (docs/launching.md) or a machine with docker.
#
#   docker build --tag opsd-jax .                                 for TPUs
#   docker build --tag opsd-jax-gpu --build-arg ACCELERATOR=gpu . for NVIDIA GPUs
#
# ACCELERATOR names a list of requirements/. Code changes do not install anything again.
FROM python:3.12-slim
ARG ACCELERATOR=tpu
WORKDIR /opsd-jax
COPY requirements.txt ./
COPY requirements/${ACCELERATOR}.txt requirements/
RUN pip install --no-cache-dir -r requirements.txt -r requirements/${ACCELERATOR}.txt
COPY opsd_jax opsd_jax
COPY kernels kernels
COPY experiments experiments
CMD ["python", "-m", "experiments.train", "--list"]
