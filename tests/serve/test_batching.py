"""Batches: what waits runs together, each gets its own answer or its own error, and the queue is bounded."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from edgecifar.serve import batching
from edgecifar.serve.batching import Batcher
from edgecifar.serve.errors import RequestError
from edgecifar.serve.metrics import Metrics, ModelMetrics
from edgecifar.serve.settings import Settings


class Model:
    """Doubles pixels; holds its breath while `gate` is closed; fails on batches with the value 255."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        self.entered.set()
        self.gate.wait(10)
        values = images[:, 0, 0, 0]
        self.batches.append(values.tolist())
        if (values == 255).any():
            raise ValueError("bad item")
        return [np.stack([values * 2.0, values * 0.0], 1).astype(np.float32)]


def item(*values: int) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 2, 2, 3)).copy()


def run(scenario, **limits):
    """Run `scenario(batcher, model)` on an event loop."""
    settings = Settings(**limits)

    async def main():
        model = Model()
        batcher = Batcher(model, "m", settings, ModelMetrics(Metrics(), "m", ("a", "b"), settings))
        try:
            return await scenario(batcher, model)
        finally:
            model.gate.set()
            await batcher.close()
            assert (batcher.requests, batcher.images) == (0, 0)

    return asyncio.run(main())


async def busy(batcher: Batcher, model: Model, value: int = 1) -> asyncio.Future:
    """Return the answer to a first item that the model holds its breath over, until a test opens the gate."""
    model.gate.clear()
    first = batcher.submit(item(value), 20)
    await asyncio.to_thread(model.entered.wait, 10)
    return first


def test_what_waits_runs_together_and_each_gets_its_own():
    async def scenario(batcher, model):
        first = await busy(batcher, model)
        others = [batcher.submit(item(*range(n, n + size)), 5) for n, size in ((10, 1), (20, 3), (30, 2))]
        model.gate.set()
        answers = await asyncio.gather(first, *others)
        assert model.batches == [[1], [10, 20, 21, 22, 30, 31]]
        assert [answer[0][:, 0].tolist() for answer in answers] == [[2], [20], [40, 42, 44], [60, 62]]

    run(scenario)


def test_a_batch_has_no_more_images_than_allowed():
    async def scenario(batcher, model):
        first = await busy(batcher, model, 0)
        others = [batcher.submit(item(*range(n, n + 3)), 5) for n in (10, 20, 30)]
        big = batcher.submit(item(*range(100, 109)), 5)
        model.gate.set()
        answers = await asyncio.gather(first, *others, big)
        assert all(len(batch) <= 4 for batch in model.batches)
        assert [answer[0][0, 0] for answer in answers] == [0, 20, 40, 60, 200]
        assert answers[-1][0][:, 0].tolist() == [2 * value for value in range(100, 109)]

    run(scenario, max_batch=4)


def test_a_batch_takes_half_of_the_queue_at_most():
    async def scenario(batcher, model):
        first = await busy(batcher, model, 0)
        others = [batcher.submit(item(value), 5) for value in range(1, 6)]
        model.gate.set()
        await asyncio.gather(first, *others)
        assert model.batches == [[0], [1, 2, 3], [4, 5]]

    run(scenario, queue=6)


def test_one_bad_item_spoils_nobodys():
    async def scenario(batcher, model):
        first = await busy(batcher, model, 0)
        good, bad, also = (batcher.submit(item(value), 5) for value in (1, 255, 3))
        model.gate.set()
        await first
        assert (await good)[0][0, 0] == 2
        assert (await also)[0][0, 0] == 6
        with pytest.raises(RequestError) as error:
            await bad
        assert error.value.status == 500
        assert "bad item" not in error.value.message
        assert batcher.healthy

    run(scenario)


def test_a_delay_waits_for_company():
    async def scenario(batcher, model):
        answers = [batcher.submit(item(1), 20)]
        await asyncio.sleep(0.05)
        answers.append(batcher.submit(item(2), 20))
        await asyncio.gather(*answers)
        assert model.batches == [[1, 2]]

    run(scenario, max_delay=10.0, max_batch=2)


def test_the_queue_is_bounded_by_requests_and_by_images():
    async def scenario(batcher, model):
        model.gate.clear()
        accepted = [batcher.submit(item(1), 5), batcher.submit(item(*range(20)), 5)]
        for _ in range(3):
            with pytest.raises(RequestError) as error:
                batcher.submit(item(1), 5)
            assert error.value.status == 429
        model.gate.set()
        await asyncio.gather(*accepted)
        assert (await batcher.submit(item(4), 5))[0][0, 0] == 8

    run(scenario, queue=2)
    run(scenario, queue_images=20)


def test_who_left_costs_nothing():
    async def scenario(batcher, model):
        first = await busy(batcher, model)
        left, stays = batcher.submit(item(2), 5), batcher.submit(item(3), 5)
        left.cancel()
        await asyncio.sleep(0)
        assert batcher.requests == 2
        model.gate.set()
        await asyncio.gather(first, stays)
        assert model.batches == [[1], [3]]

    run(scenario)


def test_a_deadline_is_honoured_while_the_model_is_busy():
    async def scenario(batcher, model):
        first = await busy(batcher, model)
        late = batcher.submit(item(2), 0.01)
        with pytest.raises(RequestError) as error:
            await asyncio.wait_for(late, 5)
        assert error.value.status == 504
        model.gate.set()
        await first
        assert model.batches == [[1]]

    run(scenario)


def test_what_is_overdue_when_its_turn_comes_is_not_run(monkeypatch):
    """Also where nobody has looked for it meanwhile."""
    monkeypatch.setattr(batching, "SWEEP", 100)

    async def scenario(batcher, model):
        first = await busy(batcher, model)
        late = batcher.submit(item(2), 0.01)
        await asyncio.sleep(0.05)
        model.gate.set()
        with pytest.raises(RequestError) as error:
            await asyncio.wait_for(late, 5)
        assert error.value.status == 504
        await first
        assert model.batches == [[1]]

    run(scenario)


def test_a_model_that_does_not_come_back_is_not_healthy():
    async def scenario(batcher, model):
        first = await busy(batcher, model)
        assert batcher.healthy
        batcher._running_since -= 1_000  # as if it had been asked so long ago
        assert not batcher.healthy
        model.gate.set()
        await first
        assert batcher.healthy

    run(scenario)


def test_what_was_submitted_is_answered_at_the_end():
    async def scenario(batcher, model):
        model.gate.clear()
        answers = [batcher.submit(item(value), 5) for value in range(5)]
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        model.gate.set()
        await closing
        assert [(await answer)[0][0, 0] for answer in answers] == [0, 2, 4, 6, 8]
        assert not batcher.healthy

    run(scenario)
