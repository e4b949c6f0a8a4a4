"""Event files for TensorBoard where they cannot be written; what is in them, tests/cli/test_train.py says."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from edgecifar.runtime.errors import OutputError

pytest.importorskip("tensorboard")

from edgecifar.train.events import EventFiles


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_though_closing_fails_too(tmp_path):
    events = EventFiles(tmp_path)
    events._make = lambda *_, **__: SimpleNamespace(add_scalar=lambda *_: None, flush=fail, close=fail)
    with pytest.raises(OutputError, match="full"), events:
        events.epoch({"epoch": 1, "loss": 1.0})


def test_a_disk_that_is_full_at_the_end(tmp_path):
    events = EventFiles(tmp_path)
    events._make = lambda *_, **__: SimpleNamespace(add_scalar=lambda *_: None, flush=lambda: None, close=fail)
    with pytest.raises(OutputError, match="full"), events:
        events.epoch({"epoch": 1, "loss": 1.0})
