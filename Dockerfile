# syntax=docker/dockerfile:1
# edgecifar serve with the bundle in the wheel: docker build -t edgecifar . && docker run --rm --read-only -p 8000:8000 edgecifar
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY face face
COPY cli cli
COPY serve serve
COPY runtime runtime
COPY train train
COPY export export
RUN python -m venv /opt/edgecifar \
    && /opt/edgecifar/bin/pip install --no-cache-dir -c constraints.txt '.[serve,sign]' \
    && /opt/edgecifar/bin/edgecifar verify

FROM python:3.11-slim
COPY --from=build /opt/edgecifar /opt/edgecifar
ENV PATH=/opt/edgecifar/bin:$PATH PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["edgecifar", "serve", "--host", "0.0.0.0", "--log-format", "json"]
