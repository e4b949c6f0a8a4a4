"""For `preexec_fn` of a process that is to be stopped by Ctrl-C."""

from __future__ import annotations

import signal


def heed() -> None:
    """Let Ctrl-C end this process again: what a shell starts in the background ignores it, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
