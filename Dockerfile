# Two images from one file: `edge` (the services of a node) and `core` (the central ones). `make image` builds both, with
# Docker or without. What changes rarely comes first: an edit of edge/ or core/ installs no package again.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.9

FROM ${UV_IMAGE} AS uv

FROM ${PYTHON_IMAGE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1 UV_CACHE_DIR=/var/cache/uv
WORKDIR /app
# The secrets are optional: `uv`, lines of UV_*=value that name an index, and `ca`, the authorities to trust. Neither
# stays in a layer.
COPY deploy/stage /usr/local/bin/stage
COPY deploy/edge-only /usr/local/share/edge-only
COPY pyproject.toml uv.lock ./

# --- what the images install, without forebay itself

FROM build AS packages-edge
RUN --mount=type=cache,id=uv,target=/var/cache/uv --mount=type=secret,id=uv --mount=type=secret,id=ca \
    stage packages edge

FROM build AS packages-core
RUN --mount=type=cache,id=uv,target=/var/cache/uv --mount=type=secret,id=uv --mount=type=secret,id=ca \
    stage packages core

# --- forebay, from its wheel, as the few files that it adds

FROM packages-edge AS engine-edge
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,id=uv,target=/var/cache/uv --mount=type=secret,id=uv --mount=type=secret,id=ca \
    stage engine edge

FROM packages-core AS engine-core
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,id=uv,target=/var/cache/uv --mount=type=secret,id=uv --mount=type=secret,id=ca \
    stage engine core

# --- the services

FROM build AS services-edge
COPY forebay.toml LICENSE /services/
COPY contracts /services/contracts
COPY edge /services/edge
RUN stage services

FROM build AS services-core
COPY forebay.toml LICENSE /services/
COPY contracts /services/contracts
COPY core /services/core
COPY jetstream-config /services/jetstream-config
RUN stage services

# --- the images

FROM ${PYTHON_IMAGE} AS runtime
# pip is part of some Python images; nothing here installs at run time.
RUN rm -rf /usr/local/lib/python3*/site-packages/pip /usr/local/lib/python3*/site-packages/pip-* /usr/local/bin/pip* \
    && groupadd --gid 10001 forebay \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin forebay \
    && install -d -o 10001 -g 10001 -m 0700 /data
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 FOREBAY_DATA=/data FOREBAY_HOST=0.0.0.0
WORKDIR /app
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS edge
COPY --from=packages-edge /out .
COPY --from=engine-edge /out .
COPY --from=services-edge /out .
# Importing once as root leaves bytecode of those modules of Python that the base image has not compiled.
RUN python -c "import forebay.process, forebay.cli.main, sqlite_utils, edge.till.app, edge.gateway.app, edge.coldchain.app, edge.stock.app"
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="forebay edge" \
      org.opencontainers.image.description="The services of an edge node: till, gateway, cold chain and stock" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV FOREBAY_PORT=8100
EXPOSE 8100
VOLUME /data
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "forebay.cli.health"]
ENTRYPOINT ["forebay"]
CMD ["run", "edge.till", "edge.gateway", "edge.coldchain", "edge.stock"]

FROM runtime AS core
COPY --from=packages-core /out .
COPY --from=engine-core /out .
COPY --from=services-core /out .
RUN python -c "import forebay.process, forebay.cli.main, sqlite_utils, yaml, psycopg, core.archive.app, core.coldwatch.app, core.orders.app, core.sales.app"
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="forebay core" \
      org.opencontainers.image.description="The central services: archive, cold watch, orders and sales; and apply, for streams and durables" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV FOREBAY_PORT=8200
EXPOSE 8200
VOLUME /data
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "forebay.cli.health"]
ENTRYPOINT ["forebay"]
CMD ["run", "core.archive", "core.coldwatch", "core.orders", "core.sales"]
