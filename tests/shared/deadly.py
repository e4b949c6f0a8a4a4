"""Work for `runtime.parallel` that ends its process at pictures of a certain name, as an empty memory would.

A module of its own, since the processes import it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from edgecifar.runtime import parallel


@dataclass(frozen=True)
class Deadly(parallel._Decode):
    """Dies at "kill...png"."""

    def __call__(self, path):
        if Path(path).name.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(path)
