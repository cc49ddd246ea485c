"""How calls of the pod API fail: Linux's errors, and the one that no program may catch by accident.

Decides which exception class an errno becomes (Python's own subclasses of OSError); knows nothing else.
"""

from __future__ import annotations

import os


class ContainerKilled(BaseException):
    """The container has been killed: raised by every blocked and every later call of the pod API.

    Threads cannot be killed, so this is what SIGKILL looks like to a program. Not an Exception, so that `except Exception`
    does not outlive it; let it pass.
    """


def failure(number: int) -> OSError:
    """The exception for an errno, with Linux's words: ECONNREFUSED becomes ConnectionRefusedError and so on."""
    return OSError(number, os.strerror(number))


def timed_out() -> TimeoutError:
    """A time-out that the program itself has set: no errno, and the standard library's words."""
    return TimeoutError("timed out")
