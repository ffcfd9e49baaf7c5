# One image for each part: --build-arg EXTRAS=coordinator or EXTRAS=node.
FROM python:3.11-slim AS build
ARG EXTRAS=coordinator
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY proto proto
COPY engine engine
COPY node node
COPY coordinator coordinator
COPY client client
RUN python -m venv /opt/novamesh && /opt/novamesh/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim AS runtime
RUN useradd --uid 10001 --create-home novamesh && install -d -o novamesh -g novamesh -m 0700 /var/lib/novamesh
COPY --from=build /opt/novamesh /opt/novamesh
ENV PATH=/opt/novamesh/bin:$PATH NOVAMESH_HOME=/var/lib/novamesh
USER novamesh
VOLUME /var/lib/novamesh
CMD ["novamesh", "--help"]
