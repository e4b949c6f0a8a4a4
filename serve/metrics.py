"""What Prometheus scrapes: requests, errors, the queue, batches, times, and what the model says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from .models import Model
    from .settings import Settings

CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Upper bounds of the histograms of times."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the histogram of batch sizes, in images."""


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a series more for each, which nobody asked for
        self.registry = registry = CollectorRegistry()
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"edgecifar_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"edgecifar_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"edgecifar_{name}_seconds", text, labels, registry=registry, buckets=SECONDS)

        self.requests = counter("requests", "Requests by endpoint and status.", "endpoint", "code")
        self.left = counter("clients_left", "Requests whose client left before the answer.")
        self.request_seconds = seconds("request", "Time from a request's header to its answer.", "endpoint")
        self.decode_seconds = seconds("decode", "Time to decode one picture.")
        self.bad_pictures = counter("bad_pictures", "Pictures that could not be read.")
        self.buffered = gauge("buffered_bytes", "Bytes of request bodies in memory.")
        self.connections = gauge("connections", "Open connections.")
        self.updates = counter("bundle_updates", "Attempts to take up new bundles, by result.", "result")
        for result in ("done", "failed"):  # from 0 on: increase() does not see a series that appears with its first 1
            self.updates.labels(result)
        self.updated = gauge("bundle_update_timestamp_seconds", "When the bundles in service were taken up.")

        self.info = gauge("model_info", "1 for each model in service.", "model", "version", "provider", "dataset")
        self.queue_requests = gauge("queue_requests", "Requests that wait or run.", "model")
        self.queue_images = gauge("queue_images", "Images that wait or run.", "model")
        self.images = counter("images", "Images classified.", "model")
        self.predictions = counter("predictions", "Images classified, by the most probable class.", "model", "label")
        self.unsure = counter("unsure", "Images whose most probable class has a low probability.", "model")
        self.unknown = counter("unknown", "Images unlike those that the net was trained on.", "model")
        self.wait_seconds = seconds("wait", "Time a request waits for the model.", "model")
        self.inference_seconds = seconds("inference", "Time of one run of the model.", "model")
        self.batch_images = Histogram(
            "edgecifar_batch_images", "Images of one run of the model.", ("model",), registry=registry, buckets=SIZES
        )

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer."""
        known = self._children.get((endpoint, status))
        if known is None:  # looking them up takes longer than counting
            known = self.requests.labels(endpoint, status), self.request_seconds.labels(endpoint)
            self._children[endpoint, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def expose(self, models: list[Model]) -> bytes:
        """Return the text that Prometheus reads, after a look at the models in service."""
        for gauge in (self.info, self.queue_requests, self.queue_images):
            gauge.clear()  # of models that an update removed
        for model in models:
            dataset = model.bundle.manifest.dataset
            self.info.labels(model.name, model.version, model.session.provider, dataset).set(1)
            self.queue_requests.labels(model.name).set(model.batcher.requests)
            self.queue_images.labels(model.name).set(model.batcher.images)
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model, looked up once. `waited` and `ran` are called by the inference thread."""

    def __init__(self, metrics: Metrics, name: str, labels: tuple[str, ...], settings: Settings) -> None:
        """Start all counters at zero, so that a rate can be taken from the first scrape on."""
        self._unsure_below = settings.unsure_below
        self._threshold: float | None = None
        self._wait, self._inference = metrics.wait_seconds.labels(name), metrics.inference_seconds.labels(name)
        self._batch, self._images = metrics.batch_images.labels(name), metrics.images.labels(name)
        self._unsure, self._unknown = metrics.unsure.labels(name), metrics.unknown.labels(name)
        self._classes = [metrics.predictions.labels(name, label) for label in labels]

    def know(self, threshold: float | None) -> ModelMetrics:
        """Count as unknown what is less familiar than `threshold`."""
        self._threshold = threshold
        return self

    def waited(self, seconds: float) -> None:
        """Count the time that a request waited."""
        self._wait.observe(seconds)

    def ran(self, outputs: list[np.ndarray], images: int, seconds: float) -> None:
        """Count a run: `outputs` as the contract orders them, probabilities first and familiarity third."""
        self._inference.observe(seconds)
        self._batch.observe(images)
        self._images.inc(images)
        if not images:
            return
        probabilities = outputs[0]
        classes = probabilities.argmax(1)
        for label, count in enumerate(np.bincount(classes).tolist()):
            if count:
                self._classes[label].inc(count)
        unsure = int((probabilities.max(1) < self._unsure_below).sum())
        if unsure:
            self._unsure.inc(unsure)
        if self._threshold is not None and (unknown := int((outputs[2] < self._threshold).sum())):
            self._unknown.inc(unknown)
