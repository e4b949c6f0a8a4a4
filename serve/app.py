"""The ASGI application: the protocol's routes, `POST /classify`, metrics, and what guards them.

`infer` is answered before Starlette's routing, which would cost as much as all else that the event loop does for it,
and where it comes whole over `connections.Connection`, before ASGI: see `infer`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import orjson
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from ..runtime.errors import PictureError
from . import classify, infer, openapi, protocol
from .decoding import Decoder, Upload
from .errors import ClientLeft, RequestError, late, overloaded
from .infer import Headers, Target
from .metrics import CONTENT_TYPE, Metrics
from .models import Model, PageFile, Registry
from .settings import ApiKeys, Settings

log = logging.getLogger("edgecifar.serve")
requests_log = logging.getLogger("edgecifar.serve.requests")

CONNECTION = "edgecifar.connection"
"""Key of a request's scope under which `connections.Connection` is found; other servers do not set it."""

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}
_TYPES |= {"wasm": "application/wasm", "png": "image/png", "jpg": "image/jpeg"}
"""Media types of the page's files by how their names end; of others there is none."""

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""Paths that need no key."""


class App:
    """An ASGI application that serves the models of a registry.

    Attributes:
        registry: the models in service; set by `replace`.
        draining: whether the server is about to end: it is not ready, and connections end with their answers.
    """

    def __init__(self, registry: Registry, settings: Settings | None = None, keys: ApiKeys | None = None) -> None:
        """Serve `registry`, whose models are started when the application's lifespan begins.

        Args:
            registry: the models.
            settings: limits; the defaults where there are none.
            keys: of those who may ask; None: everybody.
        """
        self.registry, self.settings, self.keys = registry, settings or Settings(), keys
        self.metrics, self.draining, self._started = Metrics(), False, False
        self._decoder = Decoder(self.settings, self.metrics)
        self._received, self._retiring = 0, set()
        self.metrics.buffered.set_function(lambda: self._buffered)
        routes = [
            Route("/", self._index),
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/repository/index", self._repository, methods=["POST"]),
            Route("/classify", self._classify, methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/openapi.json", self._openapi),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(prefix, self._model),
                Route(f"{prefix}/ready", self._model_ready),
                Route(f"{prefix}/infer", self._infer_elsewhere, methods=["POST"]),  # says which methods are allowed
            ]
        self._routes = Router(routes, redirect_slashes=False, default=self._page, lifespan=self._lifespan)
        self._outer: Any = self._guarded
        if self.settings.allow_origins:
            self._outer = CORSMiddleware(
                self._guarded,
                allow_origins=self.settings.allow_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "inference-header-content-length", "x-api-key"],
                expose_headers=["inference-header-content-length", "retry-after"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] == "http":
            await self._outer(scope, receive, send)
        else:
            await self._routes(scope, receive, send)

    @property
    def ready(self) -> bool:
        """Whether requests are answered: started, not about to end, and every model's thread at work."""
        models = self.registry.models
        return self._started and not self.draining and all(model.batcher.healthy for model in models)

    @property
    def decoding(self) -> bool:
        """Whether pictures are being decoded, or wait for it."""
        return self._decoder.busy

    @property
    def _buffered(self) -> int:
        """Bytes of all bodies that are being received or decoded."""
        return self._received + self._decoder.buffered

    def replace(self, registry: Registry) -> None:
        """Put `registry` in the place of the present one, which answers what it has accepted; on the event loop.

        Raises:
            RuntimeError: a thread cannot be started; the present one stays.
        """
        leaves = registry
        try:
            registry.start(self.metrics, self.settings)
            leaves, self.registry = self.registry, registry
            self.metrics.updated.set_to_current_time()
        finally:
            task = asyncio.get_running_loop().create_task(leaves.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        self.registry.start(self.metrics, self.settings)
        self.metrics.updated.set_to_current_time()
        self._started = True
        yield
        self._started = False
        await asyncio.gather(self.registry.retire(), *self._retiring)
        self._decoder.close()

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the key allows, count it, and turn every failure into an answer."""
        began, path, status = time.monotonic(), infer.path_of(scope), 0
        target = infer.target_of(scope["method"], path)
        # CORS, where it is on, adds headers to what is sent the long way.
        direct = scope.get(CONNECTION) if target and not self.settings.allow_origins else None

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        async def answer(code: int, headers: Headers, content: bytes) -> None:
            nonlocal status
            if direct:
                status = code
                await direct.respond(scope, code, headers, content)
            else:
                await counted({"type": "http.response.start", "status": code, "headers": headers})
                await counted({"type": "http.response.body", "body": content})

        try:
            if path not in HEALTH and not (path == "/metrics" and self.settings.open_metrics):
                self.check_key(dict(scope["headers"]))
            if target:
                await answer(*await self._infer(target, scope, receive))
            else:
                # Where there is an app, the router raises what it would answer in plain text otherwise.
                await self._routes({**scope, "app": self}, receive, counted)
        except ClientLeft:
            self.metrics.left.inc()
            return
        except asyncio.CancelledError:
            if not self.draining:
                raise
            if not status:  # the server's time to end is over
                await answer(*RequestError(503, "The server has ended: ask again.").answer())
        except Exception as error:
            refused = self.refusal(scope, error)
            if not status:
                await answer(*refused)
        finally:
            if status:
                self.count(scope, "infer" if target else _endpoint(path), status, time.monotonic() - began)

    def count(self, scope: Scope, endpoint: str, status: int, seconds: float) -> None:
        """Count the answer to a request, and log it where that is asked for."""
        self.metrics.answered(endpoint, status, seconds)
        if self.settings.log_requests:
            client = scope.get("client") or ("",)
            details = {"method": scope["method"], "path": scope["path"][:200], "status": status, "client": client[0]}
            milliseconds = round(1000 * seconds, 3)
            line = "%s %s: %d" % (details["method"], details["path"], status)  # noqa: UP031
            requests_log.info(ascii(line)[1:-1], extra={"event": "request", **details, "ms": milliseconds})

    def refusal(self, scope: Scope, error: Exception) -> tuple[int, Headers, bytes]:
        """Return status, headers and body of the answer to a request that failed; log what nobody foresaw."""
        if not isinstance(error, (RequestError, HTTPException)):
            extra = {"event": "failure", "path": scope["path"][:200]}
            log.error("a request failed: %r", error, exc_info=error, extra=extra)
            error = RequestError(500, "The server failed; its log has the reason.")
        return _refusal(scope, error)

    def allowed(self, timeout: float | None) -> float:
        """Return the seconds within which a request is answered that allows `timeout`, or says nothing."""
        return self.settings.timeout if timeout is None else min(timeout, self.settings.timeout)

    def check_key(self, headers: dict[bytes, bytes]) -> None:
        """Refuse a request whose headers have no key, where one is needed.

        Raises:
            RequestError: 401.
        """
        if self.keys and not self.keys.allow(headers):
            raise RequestError(
                401,
                "This server asks for a key: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                headers=((b"www-authenticate", b"Bearer"),),
            )

    async def _body(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """Return the body, of at most `limit` bytes.

        Raises:
            RequestError: it is longer, is encoded, or there is no room for it.
            ClientLeft: the client closed the connection before its end.
        """
        infer.check_head(dict(scope["headers"]), limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body = message.get("body", b"")
        if not message.get("more_body") and len(body) <= limit:
            return body
        parts, count = [body], len(body)
        self._received += count
        try:
            while message.get("more_body") and count <= limit:
                if self._buffered > self.settings.max_buffered:
                    raise overloaded("There is no room for more request bodies")
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                parts.append(message.get("body", b""))
                count += len(parts[-1])
                self._received += len(parts[-1])
        finally:
            self._received -= count
        if count > limit:
            raise infer.too_long(limit)
        return b"".join(parts)

    async def _outputs(self, scope: Scope, model: Model, images: np.ndarray, timeout: float | None) -> list[np.ndarray]:
        """Return the model's outputs for `images`; they are not computed where the client leaves before their turn."""
        return await _unless_left(scope, model.batcher.submit(images, self.allowed(timeout)))

    async def _infer(self, target: Target, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
        """Return status, headers and body of the answer."""
        with self.registry.find(*target).lease() as model:
            model.batcher.check_room()  # before the body is read
            body = await self._body(scope, receive, model.max_body)
            length = dict(scope["headers"]).get(protocol.BINARY_HEADER)
            request = model.reader.read(body, length)
            rows = await self._outputs(scope, model, request.images, request.timeout)
            return infer.answer(request, rows, target[0], model)

    async def _infer_elsewhere(self, request: Request) -> Response:
        raise RequestError(404, f"There is no model called {request.path_params['model'][:100]!r}.")

    async def _classify(self, request: Request) -> Response:
        scope, allowed = request.scope, self.settings.timeout
        question = classify.Question.parse(scope["query_string"])
        found = self.registry.default if question.model is None else self.registry.find(question.model)
        with found.lease() as model:
            model.batcher.check_room()
            self._decoder.check_room()
            body = await self._body(scope, request.receive, self.settings.max_body)
            deadline = time.monotonic() + allowed
            upload = Upload(body, request.headers.get("content-type", ""), question.fit, deadline)
            try:
                async with asyncio.timeout(allowed):
                    pictures, images = await _unless_left(scope, self._decoder.submit(upload, model.contract))
            except TimeoutError:
                raise late() from None
            good = [image for image in images if not isinstance(image, PictureError)]
            left = deadline - time.monotonic()
            rows = await self._outputs(scope, model, np.stack(good), left) if good else []
            results = classify.predictions(model, question, pictures, images, rows)
            return _json(classify.document(model, pictures, results), 200 if good else 400)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a file of the page, as ASGI has it; to what is asked for by no route."""
        file = self.registry.page.get(infer.path_of(scope).lstrip("/"))
        if file is None or scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        await self._file(Request(scope), file, scope["path"])(scope, receive, send)

    def _file(self, request: Request, file: PageFile, name: str) -> Response:
        # To be asked for again whenever it is used: another bundle may have been taken up.
        headers = {"etag": file.tag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
        if file.tag in request.headers.get("if-none-match", ""):  # of several, or weak as proxies make it
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=_TYPES.get(name.rpartition(".")[2]))

    async def _index(self, request: Request) -> Response:
        page = self.registry.page.get("index.html")
        if page and "text/html" in request.headers.get("accept", ""):  # a browser
            return self._file(request, page, "index.html")
        return _json({"name": "edgecifar", "models": self.registry.names, "see": ["/openapi.json", "/v2", "/metrics"]})

    async def _server(self, _: Request) -> Response:
        extensions = list(protocol.EXTENSIONS)
        return _json({"name": "edgecifar", "version": version("edgecifar"), "extensions": extensions})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        return _json({"ready": self.ready}, 200 if self.ready else 503)

    def _find(self, request: Request) -> Model:
        return self.registry.find(request.path_params["model"], request.path_params.get("version"))

    async def _model(self, request: Request) -> Response:
        model = self._find(request)
        return _json(protocol.model_metadata(request.path_params["model"], model.version, model.contract))

    async def _model_ready(self, request: Request) -> Response:
        ready = self._find(request).batcher.healthy and not self.draining
        return _json({"name": request.path_params["model"], "ready": ready}, 200 if ready else 503)

    async def _repository(self, request: Request) -> Response:
        await self._body(request.scope, request.receive, 65536)  # may ask for those that are ready: all are
        found = [(name, self.registry.find(name)) for name in self.registry.names]
        return _json(
            [{"name": name, "version": model.version, "state": "READY", "reason": ""} for name, model in found]
        )

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.expose(self.registry.models), media_type=CONTENT_TYPE)

    async def _openapi(self, _: Request) -> Response:
        return _json(openapi.document(self.registry, self.settings, version("edgecifar"), with_key=bool(self.keys)))


async def _unless_left(scope: Scope, future: asyncio.Future[Any]) -> Any:
    """Return the result of `future`, which is cancelled where the client leaves.

    Raises:
        ClientLeft: it did.
    """
    connection = scope.get(CONNECTION)
    if connection is None:
        return await future
    if connection.lost:  # a moment ago
        future.cancel()
        raise ClientLeft
    connection.awaited = future
    try:
        return await future
    except asyncio.CancelledError:
        if future.cancelled() and connection.lost:
            raise ClientLeft from None
        raise
    finally:
        connection.awaited = None


def _endpoint(path: str) -> str:
    """Return the label of a path: one of a few, whatever clients ask for."""
    if path.startswith("/v2/health/"):
        return "health"
    if path.startswith("/v2"):
        return "metadata"
    return path[1:] if path in ("/classify", "/metrics") else "other"


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _refusal(scope: Scope, error: RequestError | HTTPException) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of the answer to a request that is refused."""
    if isinstance(error, RequestError):
        return error.answer()
    path = scope["path"][:200]  # that Starlette's routing does not know
    texts = {
        404: f"There is nothing at {path}: /openapi.json names what there is.",
        405: f"{path} does not take {scope['method']}.",
    }
    headers = tuple((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items())
    return RequestError(error.status_code, texts.get(error.status_code, error.detail), headers).answer()
