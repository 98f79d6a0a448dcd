"""Ctrl-C and SIGTERM that wait for the end of a step."""
import os
import signal
import threading
from contextlib import suppress


class Interrupt:
    """with Interrupt() as stop: ... if stop.signal: save and leave with stop.code.

    The first SIGINT or SIGTERM is only noted; the second acts at once: KeyboardInterrupt.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal = None

    @property
    def code(self):
        """Exit code of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM, 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        else:
            self.before = {}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        with suppress(OSError):  # past sys.stderr, in the middle of whose write this may be
            os.write(2, b"\nstopping after this step; once more to stop at once\n")
