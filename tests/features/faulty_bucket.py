"""An S3 server that fails at a certain request: which places and faults there are."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from tests.features.faulty_server import (
    Act,
    Faults,
    FaultyHandler,
    answer_lost,
    cut_short,
    reset,
    says,
)

SILENT_SECONDS = 0.3
"""How long a client waits for an answer, in these tests."""


def silent(handler: FaultyHandler) -> None:
    """Nothing is answered for longer than the client waits."""
    _sleep(2 * SILENT_SECONDS)
    handler.close_connection = True


_sleep = time.sleep
"""Tests shorten `time.sleep`."""


@dataclass(frozen=True, kw_only=True)
class BucketFault:
    """What is done with a request."""

    act: Act
    stays: bool = False
    """Whether all later requests at the place fail too."""
    dies: bool = False
    """Whether all later requests fail, at whatever place."""


FAULTS = {
    "503 once": BucketFault(act=says(503, "SlowDown")),
    "500 once": BucketFault(act=says(500, "InternalError")),
    "reset": BucketFault(act=reset),
    "silent": BucketFault(act=silent),
    "answer lost": BucketFault(act=answer_lost),
    "cut short": BucketFault(act=cut_short),
    "404 once": BucketFault(act=says(404, "NoSuchKey")),
    "503 stays": BucketFault(act=says(503, "SlowDown"), stays=True),
    "forbidden": BucketFault(act=says(403, "AccessDenied"), stays=True),
    "bucket full": BucketFault(act=says(403, "QuotaExceeded"), stays=True),
    "cut off": BucketFault(act=reset, dies=True),
}
EVERYWHERE = ("503 once", "reset", "503 stays", "forbidden", "cut off")
PLACES = {
    "list": (*EVERYWHERE, "cut short"),
    "stat": (*EVERYWHERE, "404 once"),
    "read": (*EVERYWHERE, "500 once", "silent", "cut short", "404 once"),
    "write": (*EVERYWHERE, "500 once", "silent", "answer lost", "bucket full"),
    "delete": (*EVERYWHERE, "answer lost"),
}
"""What can go wrong at each place."""


class FaultyBucket:
    """Counts the requests by place, and fails at one of them."""

    def __init__(self, faults: Faults) -> None:
        self.calls: Counter[str] = Counter()
        self.fired = 0
        self._place, self._at = "", 0
        self._fault: BucketFault | None = None
        self._dead = False
        self._lock = threading.Lock()
        faults.choose = self._choose

    def fail(self, place: str, *, at: int, fault: BucketFault) -> None:
        """Let the request number `at` (from 1) at a place fail."""
        self._place, self._at, self._fault = place, at, fault

    def _choose(self, handler: FaultyHandler) -> Act | None:
        place = place_of(handler.command, handler.path)
        with self._lock:
            self.calls[place] += 1
            number = self.calls[place]
            fault = self._fault
            if fault is None:
                return None
            if self._dead:
                return fault.act
            here = place == self._place and (
                number == self._at or (fault.stays and number > self._at)
            )
            if not here:
                return None
            self.fired += 1
            self._dead = fault.dies
        if fault.act is cut_short and number == self._at:
            return _cut_if_there_is_a_body
        return fault.act


def _cut_if_there_is_a_body(handler: FaultyHandler) -> None:
    status, headers, body = handler.hand_on()
    if len(body) < 2 or status >= 300:
        reset(handler)
        return
    kept = [(k, v) for k, v in headers if k.lower() not in ("content-length", "transfer-encoding")]
    kept.append(("Content-Length", str(len(body))))
    handler.answer(status, kept, body[: len(body) // 2])
    handler.close_connection = True


def place_of(method: str, path: str) -> str:
    """What a request to S3 does."""
    if method == "GET":
        return "list" if "list-type" in parse_qs(urlsplit(path).query) else "read"
    return {"HEAD": "stat", "PUT": "write", "POST": "delete", "DELETE": "delete"}[method]
