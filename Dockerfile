# Two images of one code:
#   control  gateway, scheduler, registry and the `llmos` command
#   worker   trainer and inference: torch, transformers, vLLM
# Dependencies lie below the code, so that a change of code rebuilds in seconds.
#   docker build --target control -t llmos/control .
#   docker build --target worker --build-arg ACCELERATOR=cuda -t llmos/worker:cuda .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Where the package index has no CPU build of torch: PyTorch's own CPU index.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/llmos
WORKDIR /build

FROM build AS control-dependencies
COPY requirements/control.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/llmos/bin/python install --no-deps -r control.txt

FROM build AS worker-dependencies
ARG ACCELERATOR=cpu
COPY requirements/worker.txt pyproject.toml ./
# On a CPU by the lock. For CUDA vLLM's own wheel says which torch it was built for.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$ACCELERATOR" in \
      cpu) pip --python /opt/llmos/bin/python install --no-deps -r worker.txt ;; \
      cuda) python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; o = p["optional-dependencies"]; print(*p["dependencies"], *o["trainer"], *o["inference"], *o["traces"], *o["cuda"], sep="\n")' > cuda.txt \
            && pip --python /opt/llmos/bin/python install -r cuda.txt ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: it is cpu or cuda"; exit 1 ;; \
    esac

FROM build AS code
RUN pip install "setuptools>=77"
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY services services
COPY llmos llmos
RUN pip wheel --no-deps --no-build-isolation -w /wheel . \
    && pip --python /opt/llmos/bin/python install --no-deps --prefix /installed /wheel/*.whl

FROM ${BASE_IMAGE} AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/llmos --create-home llmos
ENV PATH=/opt/llmos/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/llmos LLMOS_HOME=/var/lib/llmos LLMOS_LOG_FORMAT=json
WORKDIR /var/lib/llmos
VOLUME /var/lib/llmos
ENTRYPOINT ["tini", "-g", "--"]
USER llmos

FROM runtime AS control
COPY --from=control-dependencies /opt/llmos /opt/llmos
COPY --from=code /installed /opt/llmos
ENV LLMOS_HOST=0.0.0.0 LLMOS_PORT=8000
EXPOSE 8000
CMD ["python", "-m", "services.gateway"]

FROM runtime AS worker
ARG ACCELERATOR=cpu
USER root
# What vLLM's kernels are linked to. On a GPU also the C compiler that Triton calls at run time: each kernel's launcher
# is a small C module, and there is no other way to load one.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libnuma1 \
        $([ "$ACCELERATOR" = cuda ] && echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/*
USER llmos
COPY --from=worker-dependencies /opt/llmos /opt/llmos
COPY --from=code /installed /opt/llmos
CMD ["python", "-m", "services.trainer"]
