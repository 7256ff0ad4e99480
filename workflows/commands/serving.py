"""A registered model put to use elsewhere: `serve`, `export`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from workflows.commands.app import MODELS, command
from workflows.commands.registry import Tracking, meant_by, refuse_unknown
from workflows.console import make_console, several

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel

GRAPH, DESCRIPTION = "head.onnx", "head.json"
"""Of an exported model; the description is written last."""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_URI|PIPELINE",
        help="models:/NAME@ALIAS or models:/NAME/VERSION; a name alone, or the pipeline's YAML "
        "file, is its champion.",
        show_default=False,
    ),
]


@command(panel=MODELS, example="sensorium serve digits --port 5001 --root /data/photos")
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 5001,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or s3://BUCKET/PREFIX below which requests may name files; as often as "
            "there are some. Without it, $SENSORIUM_SERVE_ROOTS; else no file is read.",
            show_default=False,
        ),
    ] = None,
    max_mb: Annotated[int, typer.Option(help="Largest request, in MB.", min=1)] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Requests answered at a time; as many as there are usable CPUs, unless said.",
            min=1,
            show_default=False,
        ),
    ] = None,
    tracking: Tracking = None,
) -> None:
    """Answer HTTP requests as `mlflow models serve` does, but strictly: nonsense is refused by 400.

    POST to /invocations: texts as they are, files as `data:;base64,CONTENT`, or by a path or URI
    below a --root. A payload that is broken is treated as missing, and `problems` say so. SIGTERM
    ends it well: what is being answered still is.
    """
    from workflows.pipeline import ConfigurationError, StageError
    from workflows.scoring import EncoderMismatch
    from workflows.serving.places import ROOTS, refused_root
    from workflows.serving.server import bound, ended_by_sigterm
    from workflows.serving.server import serve as serve_model

    for folder in root or ():
        reason = refused_root(folder)
        if reason is not None:
            raise ConfigurationError(f"--root {folder}: {reason}")
    with ended_by_sigterm(), _loaded(model, tracking=tracking) as found:
        os.environ[ROOTS] = ",".join(root) if root else os.environ.get(ROOTS, "")
        try:
            address = bound(host, port)
        except OSError as error:
            raise StageError(
                f"no server can listen at --host {host} --port {port}: {error.strerror or error}"
            ) from error
        line = f"{escape(found.uri)} at http://{host}:{port}/invocations"
        with address:
            try:
                serve_model(
                    found.model,
                    at=address,
                    most_bytes=max_mb * 10**6,
                    workers=workers,
                    on_listening=lambda: make_console().print(
                        f"[bold]serve[/bold]    {line}", soft_wrap=True
                    ),
                )
            except EncoderMismatch as error:
                raise StageError(f"{found.uri}: {error}") from error


@command(panel=MODELS, example="sensorium export models:/digits/3 exported")
def export(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder for `head.onnx` and `head.json`, which says what goes in and comes out.",
            show_default=False,
        ),
    ],
    tracking: Tracking = None,
) -> None:
    """Write a registered model over embeddings as ONNX, checked by onnxruntime.

    With normalisation, temperature and whatever is missing in the graph; the encoders are not.
    A graph whose answers differ is not written. Needs pip install 'sensorium\\[onnx]'.
    """
    from features.storage import LocalStorage
    from training.onnx_export import NotExportable, described_text, export_onnx
    from workflows.pipeline import ConfigurationError, StageError

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{out}: no file can be written there ({error.strerror}); name another OUT"
        ) from error
    with _loaded(model, tracking=tracking) as found:
        try:
            made = export_onnx(found.model.fitted(), record=found.model.record)
        except (NotExportable, ImportError) as error:
            raise StageError(f"{found.uri}: {error}") from error
        encoders = {
            name: {"type": item.encoder.get("type"), "fingerprint": item.encoder_fingerprint}
            for name, item in found.model.inputs.items()
        }
    described = {"model": found.uri, **made.described, "encoders": encoders}
    place = LocalStorage(out)
    place.delete([DESCRIPTION])
    place.replace(GRAPH, made.graph)
    place.replace(DESCRIPTION, described_text(described).encode())
    checked = made.described["checked"]
    tried, all_of_them = checked["subsets"], checked["of_subsets"]
    some = f"{tried} of the {all_of_them:,} subsets" if tried < all_of_them else "every subset"
    make_console().print(
        f"[bold]export[/bold]   {escape(found.uri)} to {escape(str(out / GRAPH))}: "
        f"{len(made.graph):,} bytes; {several(checked['rows'], 'row')} with {some} of "
        f"{several(len(encoders), 'modality')} answered by onnxruntime, greatest "
        f"difference {checked['greatest_difference']:.1g}",
        soft_wrap=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    uri: str
    """Of the version, whatever its alias means later."""
    model: LoadedModel


@contextmanager
def _loaded(which: str, *, tracking: str | None) -> Iterator[_Found]:
    """A registered model, for the time of a block; MLflow is asked at its beginning alone."""
    from workflows import scoring
    from workflows.pipeline import StageError
    from workflows.promotion.lineage import resolve
    from workflows.tracking import connected

    meant = meant_by(which, tracking=tracking)
    with ExitStack() as kept:
        with connected(meant.tracking) as client:
            refuse_unknown(client, name=meant.uri)
            version = resolve(client, name=meant.uri)
            named = f"models:/{version.name}/{version.version}"
            model = kept.enter_context(scoring.loaded(named, base=str(Path.cwd())))
            try:
                model.inputs  # noqa: B018
            except scoring.ForeignModel as error:
                raise StageError(f"{named}: {error}") from error
        yield _Found(uri=named, model=model)
