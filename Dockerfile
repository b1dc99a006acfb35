# The covector server. `make image-check` runs these steps without Docker: the copies, the installation, the entry point
# and the health check.

FROM python:3.11 AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY native native
COPY client client
COPY server server
RUN python -m pip wheel --no-deps --wheel-dir dist .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home covector && install -d -o covector -g covector /data
WORKDIR /install
COPY constraints.txt ./
COPY --from=build /build/dist dist
RUN python -m pip install --no-cache-dir --constraint constraints.txt "$(ls dist/*.whl)[server]"
USER covector
WORKDIR /data
VOLUME /data
EXPOSE 7337
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-m", "covector_server.health", "127.0.0.1:7337"]
ENTRYPOINT ["covector", "serve", "--data", "/data", "--listen", "0.0.0.0:7337"]
