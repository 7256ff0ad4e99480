"""A registered model behind HTTP, with the addresses and the JSON of MLflow's scoring server.

`mlflow models serve` answers the same. But it reads requests before the model sees them, and there
it guesses (two columns of one name, short rows, unknown columns), ends with an internal error
(JSON that is nested deeply, a request without a content type), repeats what it was sent, and tells
of its code; nothing bounds what is sent. Here what reaches the model is `read_request`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.utils.proto_json_utils import NumpyEncoder
from mlflow.version import VERSION
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from workflows.inputs import column_names
from workflows.scoring import InvalidInput, Unanswered
from workflows.serving.request import InvalidRequest, read_request
from workflows.stopping import Terminated

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel

JSON = "application/json"
MOST_REQUESTS, MOST_BODIES = 64, 4
"""Requests that are read or answered at a time, and how many of the largest size their bodies may
come to; the next is told 503."""
MOST_CONNECTIONS = 1024
"""Idle ones included. Who would take all of them is kept out by a proxy."""
BODY_SECONDS = 60.0
"""In which a body must have come."""
END_SECONDS = 20
"""That requests have to be answered in when the process is told to end."""
_log = logging.getLogger(__name__)


class Turned(Exception):
    """A request that is not looked at: the HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bodies:
    """The requests that are held, and the bytes of their bodies; of the event loop's thread."""

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._requests = self._bytes = 0

    @asynccontextmanager
    async def held(self, request: Request) -> AsyncIterator[bytearray]:
        """A request's body, which counts until the block ends; Turned before it is too much."""
        if self._requests >= MOST_REQUESTS:
            raise _busy()
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > self._most_bytes:
            raise self._too_large()
        self._requests += 1
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await self._read(request, into=body)
            except TimeoutError:
                raise Turned(408, f"a request comes within {BODY_SECONDS:g} seconds") from None
            yield body
        finally:
            self._requests -= 1
            self._bytes -= len(body)

    async def _read(self, request: Request, *, into: bytearray) -> None:
        async for part in request.stream():
            into += part
            self._bytes += len(part)
            if len(into) > self._most_bytes:
                raise self._too_large()
            if self._bytes > MOST_BODIES * self._most_bytes:
                raise _busy()

    def _too_large(self) -> Turned:
        return Turned(413, f"a request has {self._most_bytes:,} bytes at most")


def make_app(model: LoadedModel, *, most_bytes: int, workers: int) -> Starlette:
    """The application; a request's body has so many bytes at most.

    So many requests are answered at a time: each may hold an image as large as the limits allow.
    """
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="answer")
    bodies = Bodies(most_bytes=most_bytes)
    columns = column_names(model.inputs)

    def answer(body: bytearray) -> str:
        try:
            asked = read_request(body, columns=columns)
        except InvalidRequest as error:
            raise InvalidInput(str(error)) from None
        answers = model.answer(asked.rows, params=asked.params)
        return json.dumps(
            {"predictions": answers.to_dict(orient="records")}, cls=NumpyEncoder, allow_nan=False
        )

    async def invocations(request: Request) -> Response:
        kind, _, options = request.headers.get("content-type", JSON).partition(";")
        charset = options.strip().lower().replace('"', "")
        if kind.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
            return _refused(f"a request is {JSON} in UTF-8", status=415)
        try:
            async with bodies.held(request) as body:
                text = await asyncio.get_running_loop().run_in_executor(pool, answer, body)
        except Turned as turned:
            return _refused(str(turned), status=turned.status)
        except ClientDisconnect:
            return Response(status_code=400)
        except MlflowException as error:
            return _told(error)
        except Exception:
            _log.exception("a request could not be answered")
            return _told(Unanswered())
        return Response(text, media_type=JSON)

    async def ping(_: Request) -> Response:
        return Response("\n", media_type=JSON)

    async def version(_: Request) -> Response:
        return Response(VERSION, media_type=JSON)

    async def described(_: Request) -> Response:
        return Response(json.dumps(_described(model), default=str), media_type=JSON)

    return Starlette(
        routes=[
            Route("/model", described),
            Route("/ping", ping),
            Route("/health", ping),
            Route("/version", version),
            Route("/invocations", invocations, methods=["POST"]),
        ]
    )


def _described(model: LoadedModel) -> dict[str, Any]:
    """Which candidate answers, of what columns, and what stands where in lists of numbers."""
    record = model.record
    return {
        "candidate": record.fingerprint,
        "name": record.name,
        "task": dict(record.task),
        "classes": list(record.classes),
        "inputs": {
            name: {"kind": item.columns.kind, "columns": list(item.columns.names)}
            for name, item in model.inputs.items()
        },
    }


def serve(
    model: LoadedModel,
    *,
    at: socket.socket,
    most_bytes: int,
    workers: int | None = None,
    on_listening: Callable[[], object] = lambda: None,
) -> None:
    """Answer requests until the process is told to end; the encoders are loaded first.

    At a socket that is bound. `on_listening` is called once it listens. On SIGTERM what is being
    answered is, and Terminated raised if that is how `ended_by_sigterm` ends the block.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                on_listening()

    model.load()
    app = make_app(model, most_bytes=most_bytes, workers=workers or usable_cpus())
    Server(
        uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=END_SECONDS,
            limit_concurrency=MOST_CONNECTIONS,
        )
    ).run(sockets=[at])


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet; OSError if it cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def usable_cpus() -> int:
    """The CPUs that this process may use: of its affinity, and of its group's quota if it has one
    (`cpu.max` of Linux's control groups, version 2, as of a container).
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(found or 1, int(quota) // int(period)))
    except (OSError, ValueError):  # there is none, or it is `max`
        return found or 1


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, the first of it, ends the block as an interrupt from the keyboard does, but well.

    So folders that are there for the block alone are removed. Not `stopping`, which wakes the main
    thread again and again, and would break into requests that uvicorn lets be answered.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.SIG_IGN)
        raise Terminated("SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Terminated:
        _log.info("ended by SIGTERM")
    finally:
        signal.signal(signal.SIGTERM, before)


def _busy() -> Turned:
    return Turned(503, "the server is answering as much as it can hold; ask again in a while")


def _told(error: MlflowException) -> Response:
    return Response(
        error.serialize_as_json(), status_code=error.get_http_status_code(), media_type=JSON
    )


def _refused(message: str, *, status: int) -> Response:
    code = "TEMPORARILY_UNAVAILABLE" if status == 503 else "INVALID_PARAMETER_VALUE"
    return Response(
        json.dumps({"error_code": code, "message": message}),
        status_code=status,
        media_type=JSON,
        headers={"Retry-After": "1"} if status == 503 else None,
    )
