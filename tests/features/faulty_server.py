"""A server between a client and a real one, which fails as it is told to."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Act = Callable[["FaultyHandler"], None]
"""What is done with a request in place of handing it on."""


@dataclass
class Faults:
    """What goes wrong with the next requests, by method, in order; then nothing does."""

    endpoint: str = ""
    planned: dict[str, list[Act]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    """Method and path of every request."""
    choose: Callable[[FaultyHandler], Act | None] | None = None
    """Says of a request what is done with it; None for what is planned."""

    def plan(self, method: str, *acts: Act) -> None:
        self.planned.setdefault(method, []).extend(acts)

    def count(self, method: str) -> int:
        return sum(line.startswith(f"{method} ") for line in self.seen)


class FaultyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    target: str

    def handle_any(self) -> None:
        # Bodies are read first, so that an answer never crosses what is still being sent.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.faults.seen.append(f"{self.command} {self.path}")
        acts = self.faults.planned.get(self.command)
        chosen = self.faults.choose(self) if self.faults.choose is not None else None
        if chosen is not None:
            chosen(self)
        elif acts:
            acts.pop(0)(self)
        else:
            self.answer(*self.hand_on())

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def hand_on(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body that the real server answers."""
        connection = http.client.HTTPConnection(self.target)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        connection.request(self.command, self.path, body=self.body, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), body

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        hop = {"connection", "transfer-encoding", "date", "server"}
        length = [v for k, v in headers if k.lower() == "content-length"] or [str(len(body))]
        for name, value in headers:
            if name.lower() not in {*hop, "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length[0])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def says(status: int, code: str) -> Act:
    """An S3 error."""
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    return lambda handler: handler.answer(status, [("Content-Type", "application/xml")], body)


def reset(handler: FaultyHandler) -> None:
    """The connection is reset and nothing is done."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True


def answer_lost(handler: FaultyHandler) -> None:
    """The request is done, and the connection reset before the answer."""
    handler.hand_on()
    reset(handler)


def cut_short(handler: FaultyHandler) -> None:
    """Half of the body is sent, then the connection ends."""
    status, headers, body = handler.hand_on()
    assert len(body) > 1
    headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
    headers.append(("Content-Length", str(len(body))))
    handler.answer(status, headers, body[: len(body) // 2])
    handler.close_connection = True


@contextmanager
def faulty_server(endpoint: str) -> Iterator[Faults]:
    """A server before the one at an endpoint; its own endpoint is that of what is yielded."""
    faults = Faults()
    made = type(
        "Handler", (FaultyHandler,), {"faults": faults, "target": urlsplit(endpoint).netloc}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    faults.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
