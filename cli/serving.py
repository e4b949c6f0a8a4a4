"""The subcommand serve."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .app import Provider, command, examples, finite

MIB = 1 << 20


class LogFormat(StrEnum):
    """What a line of the log is."""

    auto = "auto"
    text = "text"
    json = "json"


def _origins(values: list[str]) -> list[str]:
    """Refuse what no browser sends as the origin of a page: it would allow nobody."""
    for value in values:
        if value not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+", value):
            raise typer.BadParameter(f"{value!r} is no origin, SCHEME://HOST[:PORT] in lower case without a path.")
    return values


@examples(
    "edgecifar serve",
    "edgecifar serve --bundle birds=runs/NAME/bundle --bundle shapes=other/bundle --port 9000",
    "edgecifar serve --host 0.0.0.0 --api-key-file keys.txt --key my.pub --bundle current",
    "curl -F image=@photo.jpg http://127.0.0.1:8000/classify",
)
@command
def serve(
    bundle: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="A bundle, and what to call it. May be repeated. Default: the bundle that ships.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    variant: Annotated[
        list[str],
        typer.Option(help="Serve only this variant. May be repeated. Default: every ONNX variant.", show_default=False),
    ] = [],  # noqa: B006
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every IPv4 address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8000,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Public key (PEM). Serve only bundles that are signed with its private key.", show_default=False
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Require one of the keys in this file, which has one per line.", show_default=False),
    ] = None,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Require no key at /metrics.")] = False,
    allow_origin: Annotated[
        list[str],
        typer.Option(
            callback=_origins,
            help="Allow web pages of this origin to read answers (CORS). May be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    wasm: Annotated[
        Path | None,
        typer.Option(
            help="Show browsers the page of 'edgecifar page' at /. PATH: the unpacked npm package onnxruntime-web.",
            show_default=False,
        ),
    ] = None,
    provider: Provider = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads of one inference. Default: one less than there are cores.", show_default=False
        ),
    ] = None,
    decoders: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Uploads that are decoded at the same time; each takes memory. Default: one less than there are "
            "cores, 4 at most.",
            show_default=False,
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Largest batch, in images.")] = 64,
    max_delay: Annotated[
        float, typer.Option(min=0, max=60_000, callback=finite, help="Milliseconds that a batch waits for more images.")
    ] = 0.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests per model that may wait or run; further ones are answered 429.")
    ] = 32,
    timeout: Annotated[
        float, typer.Option(min=0.001, callback=finite, help="Seconds that an answer may take; after that it is 504.")
    ] = 10.0,
    max_body: Annotated[int, typer.Option(min=1, max=1024, help="Largest body of a request, in MiB.")] = 32,
    max_buffered: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="MiB of all bodies that are being received or decoded; further requests are answered 429. Default: "
            "256, or --max-body if that is more.",
            show_default=False,
        ),
    ] = None,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, max=64, callback=finite, help="Largest picture, in millions of pixels.")
    ] = 25.0,
    max_connections: Annotated[int, typer.Option(min=1, help="Largest number of open connections.")] = 512,
    drain: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Seconds after SIGTERM in which new requests are still answered."),
    ] = 1.0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log every request.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="auto: text on a terminal, else json.")] = LogFormat.auto,
) -> None:
    """Serve bundles over HTTP: Open Inference Protocol v2, uploads at /classify, Prometheus metrics at /metrics."""
    from ..runtime.machine import usable_cpus
    from ..serve import logs, server
    from ..serve.models import Source
    from ..serve.settings import Settings, default_decoders

    if max_buffered is not None and max_buffered < max_body:
        raise typer.BadParameter(f"--max-buffered {max_buffered}: a single body may take --max-body {max_body} MiB.")
    settings = Settings(
        max_batch=max_batch,
        max_delay=max_delay / 1000,
        queue=queue,
        queue_images=max(1024, queue),
        timeout=timeout,
        max_body=max_body * MIB,
        max_buffered=(max_buffered or max(256, max_body)) * MIB,
        max_pixels=int(max_pixels * 1e6),
        decoders=decoders or default_decoders(usable_cpus()),
        max_connections=max_connections,
        drain=drain,
        open_metrics=open_metrics,
        log_requests=log_requests,
        allow_origins=tuple(allow_origin),
    )
    source = Source(
        Source.parse(bundle),
        variants=tuple(variant),
        provider=provider,
        threads=threads or max(1, usable_cpus() - 1),  # one core is left to HTTP and to decoding
        key=key,
        wasm=wasm,
    )
    as_json = log_format == LogFormat.json or (log_format == LogFormat.auto and not sys.stderr.isatty())
    with logs.logging_to_stderr(as_json):
        server.run(source, server.Address(host, port), settings, api_key_file)
