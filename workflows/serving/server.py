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
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel

JSON = "application/json"
MOST_AT_ONCE = 64
"""Requests that are read or answered at a time; the next is told 503."""
_log = logging.getLogger(__name__)


def make_app(model: LoadedModel, *, most_bytes: int) -> Starlette:
    """The application; a request's body has so many bytes at most."""
    # As many at once as there are CPUs: each may hold an image as large as the limits allow.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="answer")
    columns = column_names(model.inputs)

    def answer(body: bytes) -> str:
        try:
            asked = read_request(body, columns=columns)
        except InvalidRequest as error:
            raise InvalidInput(str(error)) from None
        answers = model.answer(asked.rows, params=asked.params)
        if len(answers) != len(asked.rows):
            raise InvalidInput("a row holds lists of texts; give a row for each")
        return json.dumps(
            {"predictions": answers.to_dict(orient="records")}, cls=NumpyEncoder, allow_nan=False
        )

    async def invocations(request: Request) -> Response:
        kind, _, options = request.headers.get("content-type", JSON).partition(";")
        charset = options.strip().lower().replace('"', "")
        if kind.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
            return _refused(f"a request is {JSON} in UTF-8", status=415)
        try:
            body = await _body(request, most=most_bytes)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return _refused(f"a request has {most_bytes:,} bytes at most", status=413)
        try:
            text = await asyncio.get_running_loop().run_in_executor(pool, answer, body)
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

    return Starlette(
        routes=[
            Route("/ping", ping),
            Route("/health", ping),
            Route("/version", version),
            Route("/invocations", invocations, methods=["POST"]),
        ]
    )


def serve(model: LoadedModel, *, host: str, port: int, most_bytes: int) -> None:
    """Answer requests until the process is told to end; the encoders are loaded first."""
    import uvicorn

    model.load()
    uvicorn.run(
        make_app(model, most_bytes=most_bytes),
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
        limit_concurrency=MOST_AT_ONCE,
    )


async def _body(request: Request, *, most: int) -> bytes | None:
    """The body; None if it is longer than that, which is found before all of it is held."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > most:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _told(error: MlflowException) -> Response:
    return Response(
        error.serialize_as_json(), status_code=error.get_http_status_code(), media_type=JSON
    )


def _refused(message: str, *, status: int) -> Response:
    text = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": message})
    return Response(text, status_code=status, media_type=JSON)
