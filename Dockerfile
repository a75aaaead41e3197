# Three images, one per package:
#
#     docker build --target training --tag vars-training .
#     docker build --target export   --tag vars-export   .      TensorRT 11.1.0, which Triton 26.07 has too
#     docker build --target serving  --tag vars-serving  .      no torch
#
# Each target has a build stage, which installs what its extra in pyproject.toml lists, at the versions of
# constraints.txt, and a last stage without pip's leftovers. The code comes last: a change of it installs nothing anew.
# The images run as user 10001, or any other that `--user` says, and write to mounted folders and /tmp only.
#
# Another base, such as a mirror's: --build-arg PYTHON_BASE=registry.example/python:3.11-slim

ARG PYTHON_BASE=docker.io/library/python:3.11.14-slim-bookworm
# Plans are read by the TensorRT version that built them: change it together with the Triton image that serves them.
ARG TENSORRT_BASE=nvcr.io/nvidia/tensorrt:26.07-py3


FROM ${PYTHON_BASE} AS training-build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[training,wandb]'


FROM ${PYTHON_BASE} AS training
COPY --from=training-build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LOGNAME=vars \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY mvfoul /app/mvfoul
COPY training /app/training
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]


# TensorRT's Python module belongs to the base's own interpreter: the environment sees what is installed there.
FROM ${TENSORRT_BASE} AS export-build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3 -m venv --without-pip --system-site-packages /opt/venv \
 && PIP_CONSTRAINT= python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt \
    '.[export]'


FROM ${TENSORRT_BASE} AS export
COPY --from=export-build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LOGNAME=vars \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY mvfoul /app/mvfoul
COPY training /app/training
COPY export /app/export
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "export"]
CMD ["--help"]


FROM ${PYTHON_BASE} AS serving-build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3 -m venv --without-pip /opt/venv \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[serving]'


FROM ${PYTHON_BASE} AS serving
COPY --from=serving-build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LOGNAME=vars
COPY mvfoul /app/mvfoul
COPY serving /app/serving
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080 8081
# For the default port; in Kubernetes the probes of the manifest count, not this.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "serving"]
CMD ["--artifact", "/artifact", "--host", "0.0.0.0"]
