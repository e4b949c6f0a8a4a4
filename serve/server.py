"""The process: it listens, takes up new bundles on SIGHUP, and ends on SIGTERM when all is answered."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from ..runtime.errors import EdgecifarError, OutputError
from .app import App
from .connections import limited, sweep
from .models import Source, load_registry
from .settings import ApiKeys, Settings

log = logging.getLogger("edgecifar.serve")

SWITCH_INTERVAL = 0.001
"""Seconds for which one thread may keep Python to itself while another wants it: inference must not wait for 5 ms."""

COLLECT_EVERY = 20_000
"""Objects that are made, less those that went, before Python looks for cycles. A request leaves none behind, so that at
Python's 700 it looks often and finds nothing."""

SO_ATTACH_FILTER = 26
"""Linux's socket option that takes a program by which packets are let in, socket(7); Python does not name it."""

NO_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""Such a program, which lets in what does not ask for a new connection: load the flags of TCP's header; leave SYN and
ACK; where that is SYN alone, go on, else skip one; keep nothing; keep all. The instructions are those of bpf(4)."""

HANDSHAKE = 0.1
"""Seconds for which connections that were asked for before the end are waited for: a round trip, and some."""


@dataclass(frozen=True)
class Address:
    """Where the server listens; port 0 is any that is free."""

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def is_local(self) -> bool:
        """Whether nothing outside this machine can reach it."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    def listen(self) -> socket.socket:
        """Return a socket that listens here.

        Raises:
            OutputError: the address is in use or not this machine's.
        """
        listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            raise OutputError(
                f"The server cannot listen on {self.host}, port {self.port} ({error.strerror or error}): choose "
                "another --host or --port."
            ) from None
        return listener


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal, not with exit code 0.

    Attributes:
        app: what is served.
        all_answered: whether the end came when all that was accepted was answered, not when the time for that was over.
    """

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self.app, self.all_answered = app, False
        self._last: list[asyncio.Task[Any]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and look after connections whose clients are slow."""
        await super().startup(sockets)
        self._sweeper = asyncio.get_running_loop().create_task(sweep(self.server_state.connections))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, and what waits to be accepted, then end."""
        for listener in sockets or []:
            _refuse_new(listener)
        await asyncio.sleep(HANDSHAKE)
        for listener in sockets or []:
            self._accept_last(listener)
        await asyncio.gather(*self._last, return_exceptions=True)  # so that they are told of the end with the others
        await super().shutdown(sockets)
        self._sweeper.cancel()

    async def _wait_tasks_to_complete(self) -> None:
        await super()._wait_tasks_to_complete()  # uvicorn cancels it when the time is over
        self.all_answered = True

    def _accept_last(self, listener: socket.socket) -> None:
        """Take every connection that the system has made already: it would reset those that are not taken."""
        loop, config = asyncio.get_running_loop(), self.config
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        listener.setblocking(False)
        with contextlib.suppress(OSError):  # BlockingIOError: there is none left
            while True:
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                made = loop.connect_accepted_socket(
                    lambda: config.http_protocol_class(config=config, **state, _loop=loop),  # type: ignore[call-arg]
                    accepted,
                )
                self._last.append(loop.create_task(made))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `_Life`."""
        yield


def _refuse_new(listener: socket.socket) -> None:
    """Let the system begin no more connections: between the last that is taken and the listener's end it would.

    A client that asks for one asks again later and is then refused, so that it knows that nothing was accepted. What
    was asked for before still comes about: the system takes a client's last packet of the handshake.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in NO_SYN))
    described = struct.pack("HP", len(NO_SYN), ctypes.addressof(program))
    with contextlib.suppress(OSError):  # a sandbox that allows none
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def run(source: Source, address: Address, settings: Settings, api_key_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a signal more ends the process at once, with exit code 1.

    Raises:
        EdgecifarError: a bundle or a key file cannot be used, or the address is taken.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    # First the port: one that is taken is said before models are read.
    with contextlib.closing(address.listen()) as listener, _signals_before_service() as early:
        keys = _read_keys(api_key_file)
        _warn(keys, address)
        app = App(load_registry(source), settings, keys)
        server = make_server(app)
        gc.collect()
        gc.freeze()  # what is there now stays: no collection has to look at it again
        gc.set_threshold(COLLECT_EVERY)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_Life(server, source, api_key_file, early).live(listener))
    if app.decoding:  # for nobody, and Python would wait for it
        os._exit(0)


@contextlib.contextmanager
def _signals_before_service() -> Iterator[list[int]]:
    """End the process on SIGTERM, and note each SIGHUP in the list that is yielded, until `_Life` takes the signals.

    Else SIGHUP would end it, and SIGTERM do nothing where it is a container's first process.
    """

    def end(*_: object) -> None:
        log.info("Stopped before the bundles were loaded.", extra={"event": "stopped"})
        sys.exit(0)

    early: list[int] = []
    wanted = {"SIGTERM": end, "SIGHUP": lambda number, _: early.append(number)}  # Windows has no SIGHUP
    numbers = {getattr(signal, name): handler for name, handler in wanted.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    try:
        yield early
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _read_keys(path: Path | None) -> ApiKeys | None:
    """Return the keys of a file, or None without one; say so if other users can read it."""
    keys = ApiKeys(path) if path else None
    if keys and keys.exposed:
        log.warning("%s can be read by other users: chmod 600 it.", keys.path, extra={"event": "exposed_keys"})
    return keys


def _warn(keys: ApiKeys | None, address: Address) -> None:
    if not keys and not address.is_local:
        log.warning(
            "Anyone who can reach %s can use this server, because it requires no key: pass --api-key-file, or listen "
            "on 127.0.0.1 behind a proxy.",
            address.host,
            extra={"event": "no_key"},
        )


def make_server(app: App) -> Server:
    """Return uvicorn set up for `app`: its connections have the limits of the application's settings."""
    config = uvicorn.Config(
        app,
        http=limited(app),
        loop="uvloop" if _has_uvloop() else "asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=app.settings.keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=int(app.settings.timeout + app.settings.receive_timeout) + 1,
    )
    return Server(config, app)


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:  # on Windows there is none
        return False
    return True


class _Life:
    """A server from its first request to its last; `early`: every SIGHUP that came before."""

    def __init__(self, server: Server, source: Source, api_key_file: Path | None, early: list[int]) -> None:
        self._server, self._app, self._source, self._api_key_file = server, server.app, source, api_key_file
        self._early = early
        self._updating, self._update_again = False, False
        self._tasks: set[asyncio.Task[None]] = set()

    async def live(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for name, handler in (("SIGTERM", self._end), ("SIGINT", self._end_now), ("SIGHUP", self._update)):
            if not hasattr(signal, name):  # Windows has no SIGHUP
                continue
            try:
                loop.add_signal_handler(getattr(signal, name), handler)
            except NotImplementedError:  # Windows again
                signal.signal(getattr(signal, name), lambda *_, call=handler: loop.call_soon_threadsafe(call))
        self._start(self._announce(listener))
        await self._server.serve(sockets=[listener])
        for task in self._tasks:
            task.cancel()
        if self._server.all_answered:
            log.info("Stopped: all accepted requests were answered.", extra={"event": "stopped"})
        else:
            log.warning(
                "Stopped before some requests were complete, or some answers were read.", extra={"event": "stopped"}
            )

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _announce(self, listener: socket.socket) -> None:
        while not self._server.started:
            await asyncio.sleep(0.005)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        names = self._app.registry.names
        log.info(
            "Ready: http://%s:%d serves %s. Stop it with Ctrl-C or SIGTERM; SIGHUP loads new bundles.",
            shown,
            port,
            ", ".join(names),
            extra={"event": "ready", "host": host, "port": port, "models": names},
        )
        _notify("READY=1")
        if self._early:
            self._update()

    def _end(self) -> None:
        """On SIGTERM: say not ready, answer for a while, then end."""
        if self._app.draining:
            self._end_now()
            return
        self._app.draining = True
        _notify("STOPPING=1")
        log.info(
            "Shutting down: new requests are still answered for %g s.",
            self._app.settings.drain,
            extra={"event": "ending"},
        )
        asyncio.get_running_loop().call_later(self._app.settings.drain, self._stop)

    def _end_now(self) -> None:
        """On SIGINT: answer what was accepted, then end; the second time, end."""
        if self._server.should_exit:
            log.error(
                "Stopped at once by a second signal, before all requests were answered.", extra={"event": "forced"}
            )
            os._exit(1)  # Python would wait for threads that decode, load bundles or run models
        self._app.draining = True
        _notify("STOPPING=1")
        log.info(
            "Shutting down: accepted requests are answered first. A second signal stops at once.",
            extra={"event": "ending"},
        )
        self._stop()

    def _stop(self) -> None:
        self._server.should_exit = True

    def _update(self) -> None:
        """On SIGHUP: take up the bundles and the key file as they are now."""
        if self._updating:
            self._update_again = True  # it may have read what was there before
        else:
            self._start(self._take_up())

    async def _take_up(self) -> None:
        self._updating = True
        loop, app = asyncio.get_running_loop(), self._app
        try:
            keys = _read_keys(self._api_key_file)
            registry = await loop.run_in_executor(None, load_registry, self._source)
            app.replace(registry)
        except EdgecifarError as error:
            app.metrics.updates.labels("failed").inc()
            log.error("The update failed, the old bundles and keys stay: %s", error, extra={"event": "update_failed"})
        except Exception as error:
            app.metrics.updates.labels("failed").inc()
            log.error(
                "The update failed, the old bundles and keys stay: %r",
                error,
                exc_info=error,
                extra={"event": "update_failed"},
            )
        else:
            app.keys = keys
            app.metrics.updates.labels("done").inc()
            versions = {model.name: model.version for model in registry.models}
            log.info("New bundles are in service.", extra={"event": "updated", "versions": versions})
        finally:
            self._updating = False
            if self._update_again:
                self._update_again = False
                self._update()


def _notify(state: str) -> None:
    """Tell systemd, if it started this process, as sd_notify(3) says."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(address)
        client.sendall(state.encode())
