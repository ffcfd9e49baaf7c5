# Every part's image; the target says which:
#   coordinator   no torch, no compiler
#   node          computes on CPUs
#   node-cuda     the same, and the C compiler that our GPU kernels need once
# A node's torch is that of the package index, with CUDA's libraries. Where an index of torch's CPU
# builds is to be had, --build-arg PIP_EXTRA_INDEX_URL=… makes the target node smaller by gigabytes.

FROM python:3.11.14-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY broker broker
COPY engine engine
COPY node node
COPY coordinator coordinator
COPY client client
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11.14-bookworm AS coordinator-build
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    python -m venv /opt/novamesh && /opt/novamesh/bin/pip install --constraint /constraints.txt \
    "$(echo /wheels/*.whl)[coordinator,broker]"

FROM python:3.11.14-bookworm AS node-build
ARG PIP_EXTRA_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    python -m venv /opt/novamesh && /opt/novamesh/bin/pip install --constraint /constraints.txt \
    "$(echo /wheels/*.whl)[node,p2p]"

FROM python:3.11.14-slim-bookworm AS slim
RUN useradd --uid 10001 --home-dir /var/lib/novamesh --no-create-home novamesh \
    && install -d -o novamesh -g novamesh -m 0700 /var/lib/novamesh
ENV PATH=/opt/novamesh/bin:$PATH NOVAMESH_HOME=/var/lib/novamesh HOME=/var/lib/novamesh
WORKDIR /var/lib/novamesh
VOLUME /var/lib/novamesh
USER 10001:10001
CMD ["novamesh", "--help"]

FROM slim AS coordinator
COPY --from=coordinator-build /opt/novamesh /opt/novamesh

FROM slim AS node
COPY --from=node-build /opt/novamesh /opt/novamesh

FROM python:3.11.14-bookworm AS node-cuda
RUN useradd --uid 10001 --home-dir /var/lib/novamesh --no-create-home novamesh \
    && install -d -o novamesh -g novamesh -m 0700 /var/lib/novamesh
COPY --from=node-build /opt/novamesh /opt/novamesh
ENV PATH=/opt/novamesh/bin:$PATH NOVAMESH_HOME=/var/lib/novamesh HOME=/var/lib/novamesh \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /var/lib/novamesh
VOLUME /var/lib/novamesh
USER 10001:10001
CMD ["novamesh", "--help"]
