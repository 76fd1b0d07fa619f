"""SIGINT and SIGTERM as a question that the loop answers between two steps. Imports nothing big,
so the handlers are in place before torch is loaded."""

import signal


class StopSignal:
    """Remembers SIGINT and SIGTERM, so that a step is finished and written before the end."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
