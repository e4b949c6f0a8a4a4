"""Batches of what waits: one thread runs a model, and each request gets its own answer or its own error."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.errors import EdgecifarError
from .errors import RequestError, late, overloaded

if TYPE_CHECKING:
    from .metrics import ModelMetrics
    from .settings import Settings

log = logging.getLogger("edgecifar.serve")

Outputs = list[np.ndarray]
"""An array an output of the model, in the contract's order, each with a row an image."""

SWEEP = 0.25
"""Seconds between two looks for requests whose time is over while the model runs others."""


Answer = Outputs | RequestError


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits for its answer.

    Attributes:
        images: uint8 [N, size, size, 3].
        answered: called once with the answer, on the event loop.
        arrived: on `time.monotonic`'s clock.
        deadline: likewise.
        over: whether it was answered, or nobody wants the answer any more.
    """

    images: np.ndarray
    answered: Callable[[Answer], None]
    arrived: float
    deadline: float
    over: bool = False


class Batcher:
    """Runs requests together that wait at the same time. Its methods belong to the event loop's thread.

    A request that arrives while nothing runs is run at once, alone: batches form of what arrives meanwhile, so that no
    request waits for company unless `Settings.max_delay` asks for it.
    """

    def __init__(
        self, run: Callable[[np.ndarray], Outputs], name: str, settings: Settings, metrics: ModelMetrics
    ) -> None:
        """Start the thread.

        Args:
            run: from images, uint8 [N, size, size, 3], to the model's outputs; called by that thread alone.
            name: of the model.
            settings: `max_batch`, `max_delay`, `queue`, `queue_images` and `timeout` are used.
            metrics: what is counted.
        """
        self._run, self._settings, self._metrics = run, settings, metrics
        self._loop = asyncio.get_running_loop()
        self._fresh: list[Ticket] = []
        self._handed_over: queue.SimpleQueue[list[Ticket] | None] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()  # the thread's own
        self._ended = False  # likewise
        self._tickets: set[Ticket] = set()
        self._images = 0
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"inference of {name}", daemon=True)
        self._thread.start()
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)

    @property
    def requests(self) -> int:
        """How many requests wait or run."""
        return len(self._tickets)

    @property
    def images(self) -> int:
        """How many images wait or run."""
        return self._images

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and no batch has been running for longer than a request may take."""
        since = self._running_since
        stuck = since is not None and time.monotonic() - since > max(self._settings.timeout, 10.0)
        return self._thread.is_alive() and not stuck

    def check_room(self) -> None:
        """Raise what a request is answered that would exceed the queue."""
        if len(self._tickets) >= self._settings.queue or self._images >= self._settings.queue_images:
            raise overloaded("The queue of this model is full")

    def submit(self, images: np.ndarray, timeout: float) -> asyncio.Future[Outputs]:
        """Return the future outputs of `images`, as `ask` answers them; whoever cancels it wants none.

        Raises:
            RequestError: 429, there is no room.
        """
        future: asyncio.Future[Outputs] = self._loop.create_future()

        def answered(answer: Answer) -> None:
            if future.done():  # cancelled a moment ago
                return
            if isinstance(answer, RequestError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        ticket = self.ask(images, timeout, answered)
        future.add_done_callback(lambda _: self.drop(ticket))
        return future

    def ask(self, images: np.ndarray, timeout: float, answered: Callable[[Answer], None]) -> Ticket:
        """Let the model run on `images`, uint8 [N, size, size, 3], which the caller has checked.

        Args:
            images: of the request.
            timeout: seconds within which it is answered.
            answered: called on the event loop, once at most, with the outputs, or with a `RequestError` where the time
                passes or the model fails on these images. It raises nothing.

        Raises:
            RequestError: 429, there is no room.
        """
        self.check_room()
        now = time.monotonic()
        ticket = Ticket(images, answered, now, now + timeout)
        self._tickets.add(ticket)
        self._images += len(images)
        if not self._fresh:  # what arrives in the same round of the event loop is handed over together
            self._loop.call_soon(self._hand_over)
        self._fresh.append(ticket)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forget `ticket`, whose answer nobody wants any more; it may be over already."""
        if not ticket.over:
            ticket.over = True
            self._tickets.discard(ticket)
            self._images -= len(ticket.images)

    async def close(self) -> None:
        """Answer what was submitted, then end the thread."""
        self._sweeper.cancel()
        self._hand_over()
        self._handed_over.put(None)
        while self._thread.is_alive():
            await asyncio.sleep(0.01)
            self._expire()

    def _hand_over(self) -> None:
        if self._fresh:
            self._handed_over.put(self._fresh)
            self._fresh = []

    def _deliver(self, answers: list[tuple[Ticket, Answer]]) -> None:
        for ticket, answer in answers:
            if not ticket.over:
                self.drop(ticket)
                ticket.answered(answer)

    def _sweep(self) -> None:
        self._expire()
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)

    def _expire(self) -> None:
        now = time.monotonic()
        self._deliver([(ticket, late()) for ticket in self._tickets if ticket.deadline < now])

    # What follows runs on the thread.

    def _work(self) -> None:
        while tickets := self._gather():
            tickets = [ticket for ticket in tickets if not ticket.over]  # of clients that left
            if not tickets:
                continue
            self._running_since = time.monotonic()
            answers = self._answer(tickets)
            self._running_since = None
            try:
                self._loop.call_soon_threadsafe(self._deliver, answers)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _gather(self) -> list[Ticket]:
        """Return the tickets of the next batch, of which only a lone one may be too large; none: this is the end.

        They are at most half of the queue's, so that under overload the next batch forms while this one runs.
        """
        while not self._waiting:
            if self._ended:
                return []
            self._take(None)
        first = self._waiting.popleft()
        tickets, count, until = [first], len(first.images), first.arrived + self._settings.max_delay
        most = max(1, self._settings.queue // 2)
        while count < self._settings.max_batch and len(tickets) < most:
            if not self._waiting and (self._ended or not self._take(until - time.monotonic())):
                break
            if count + len(self._waiting[0].images) > self._settings.max_batch:
                break
            tickets.append(self._waiting.popleft())
            count += len(tickets[-1].images)
        return tickets

    def _take(self, seconds: float | None) -> bool:
        """Take over tickets, waiting for them for `seconds`, or for ever; return whether some came."""
        try:
            found = self._handed_over.get(seconds is None or seconds > 0, seconds if seconds and seconds > 0 else None)
        except queue.Empty:
            return False
        self._ended = found is None
        self._waiting.extend(found or ())
        return bool(found)

    def _answer(self, tickets: list[Ticket]) -> list[tuple[Ticket, Answer]]:
        now = time.monotonic()
        overdue = [ticket for ticket in tickets if ticket.deadline < now]
        tickets = [ticket for ticket in tickets if ticket.deadline >= now]
        answers: list[tuple[Ticket, Answer]] = [(ticket, late()) for ticket in overdue]
        if not tickets:
            return answers
        for ticket in tickets:
            self._metrics.waited(now - ticket.arrived)
        try:
            outputs = self._run_parts([ticket.images for ticket in tickets])
        except Exception as error:
            if len(tickets) > 1:  # one of them, or all together, were too much: each alone has its own fate
                return answers + [answer for ticket in tickets for answer in self._answer([ticket])]
            known = isinstance(error, EdgecifarError)
            log.error("inference failed: %s", error, exc_info=None if known else error, extra={"event": "inference"})
            message = str(error) if known else "the model failed on these images; the server's log has the reason."
            return [*answers, (tickets[0], RequestError(500, message))]
        starts = np.cumsum([0, *(len(ticket.images) for ticket in tickets)]).tolist()
        for ticket, start, end in zip(tickets, starts, starts[1:], strict=False):
            answers.append((ticket, [output[start:end] for output in outputs]))
        return answers

    def _run_parts(self, arrays: list[np.ndarray]) -> Outputs:
        """Return the outputs of all arrays, of which only a lone one may have more than `max_batch` images."""
        images = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        parts = []
        for start in range(0, len(images) or 1, self._settings.max_batch):
            part = images[start : start + self._settings.max_batch]
            began = time.monotonic()
            parts.append(self._run(part))
            self._metrics.ran(parts[-1], len(part), time.monotonic() - began)
        return parts[0] if len(parts) == 1 else [np.concatenate(rows) for rows in zip(*parts, strict=True)]
