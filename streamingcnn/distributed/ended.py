"""What a rank says when it is ended from outside.

torchrun looks at its processes ten times a second. Where one has died, it ends all others at once, and a rank that was
computing, or was woken by the broken connection a moment ago, is gone before it could say anything:

    rank 1      killed
    torchrun       sees it       sends SIGTERM
    rank 0      computes           ended, without a word; or, inside this block, after a line on what it was doing and
                                   where the others were seen last

Python runs a handler between two of its own operations. A rank that waits for a dead one is woken by its connection
and gets there; one that waits for a rank that is merely silent gets there after the timeout, or is killed by torchrun
after half a minute.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["last_words"]

#: Where they are written: sys.stderr may be in the middle of a line.
STDERR = 2


@contextmanager
def last_words(words: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Answer SIGTERM with words while the block runs, and end by it then.

    Where the program answers it in a way of its own, or in a thread, which cannot have a handler, nothing is changed.

    Args:
        words: called when the signal comes; each part is written once it is known, as the next may never be.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def say(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            for part in words():
                os.write(STDERR, part.encode())
            os.write(STDERR, b"\n")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, say)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
