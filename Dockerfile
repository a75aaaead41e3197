# Three images, one per package; `make images` builds them with labels and a list of what is in them (docs/images.md):
#
#     docker build --target training --tag vars-training .
#     docker build --target export   --tag vars-export   .      TensorRT 11.1.0, which Triton 26.07 has too
#     docker build --target serving  --tag vars-serving  .      no torch, no compiler; `python -m serving.live` too
#
# Each target has a build stage, which installs what its extra in pyproject.toml lists, at the versions of
# constraints.txt, and a last stage without pip's leftovers. The code comes last: a change of it installs nothing anew.
# The images run as user 10001, or any other that `--user` says, and write to mounted folders and /tmp only.
#
# A mirror or a proxy: --build-arg PYTHON_BASE=registry.example/python@sha256:..., --secret id=pip.conf,src=pip.conf and
# --secret id=ca.crt,src=ca.crt (which pip.conf names as /run/secrets/ca.crt). Secrets leave nothing in an image.

# These three are those of k8s/versions.env.
ARG PYTHON_BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG TENSORRT_BASE=nvcr.io/nvidia/tensorrt:26.07-py3@sha256:b82db1abc23750ab0069abc99bbe4ea29138dbdc23ea39861199e2346638b48a
ARG TENSORRT_VERSION=11.1.0


FROM ${PYTHON_BASE} AS python-base
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LOGNAME=vars
WORKDIR /tmp


# The same settings on the other base: a Dockerfile has no way to write them once, so a test compares the two.
FROM ${TENSORRT_BASE} AS tensorrt-base
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LOGNAME=vars
WORKDIR /tmp


FROM ${PYTHON_BASE} AS training-build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    python3 -m venv --without-pip /opt/venv \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[training,download,wandb]'


FROM python-base AS training
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=training-build /opt/venv /opt/venv
COPY mvfoul /app/mvfoul
COPY training /app/training
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
ARG PYTHON_BASE
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="VARS platform: training" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.base.name=${PYTHON_BASE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}


# TensorRT's Python module belongs to the base's own interpreter: the environment sees what is installed there. A base
# with another TensorRT would build plans that the server cannot read, so it ends the build here. An empty
# TENSORRT_VERSION skips that: the image then exports ONNX only, and says so when a plan is asked for.
FROM ${TENSORRT_BASE} AS export-build
ARG TENSORRT_VERSION
RUN [ -z "${TENSORRT_VERSION}" ] \
 || python3 -c "from importlib.metadata import version as v; print('TensorRT', v('tensorrt'))" \
  | grep -F "TensorRT ${TENSORRT_VERSION}" \
 || { echo "error: the base has no TensorRT ${TENSORRT_VERSION}: see TENSORRT_BASE in k8s/versions.env" >&2; exit 1; }
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    python3 -m venv --without-pip --system-site-packages /opt/venv \
 && PIP_CONSTRAINT= python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt \
    '.[export]'


FROM tensorrt-base AS export
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=export-build /opt/venv /opt/venv
COPY mvfoul /app/mvfoul
COPY training /app/training
COPY export /app/export
USER 10001:10001
ENTRYPOINT ["python", "-m", "export"]
CMD ["--help"]
ARG TENSORRT_BASE
ARG TENSORRT_VERSION
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="VARS platform: export" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.base.name=${TENSORRT_BASE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      vars.tensorrt=${TENSORRT_VERSION:-none}


FROM ${PYTHON_BASE} AS serving-build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    python3 -m venv --without-pip /opt/venv \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt \
    '.[serving,live,tracing]'


FROM python-base AS serving
COPY --from=serving-build /opt/venv /opt/venv
COPY mvfoul /app/mvfoul
COPY serving /app/serving
USER 10001:10001
EXPOSE 8080 8081
# For the default port; in Kubernetes the probes of the manifest count, not this. Ready is a real inference: slow on CPUs.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=19)"]
ENTRYPOINT ["python", "-m", "serving"]
CMD ["--artifact", "/artifact", "--host", "0.0.0.0"]
ARG PYTHON_BASE
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="VARS platform: serving" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.base.name=${PYTHON_BASE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
