"""The files of an encoder on machines that lack them: as a driver reads them, as a worker has them.

What an encoder's weights are read from may lie on the driver's machine alone: a folder beside the
YAML file, or the tuned encoder of a registered model, which is fetched for the time of a job. They
are held whole in the memory of the driver and of each worker that lacks them, for the time of the
copying: as much as the weights take.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from features.encoders import EncoderSpec


def read_files(spec: EncoderSpec) -> dict[str, bytes]:
    """The content of an encoder's local files, by their names; none of one without."""
    return {name: Path(path).read_bytes() for name, path in spec.local_files().items()}


def with_files_here(
    spec: EncoderSpec, *, paths: Mapping[str, str], fetch: Callable[[], Mapping[str, bytes]]
) -> EncoderSpec:
    """The encoder as this process can load it.

    Itself, if its files are there by their `paths` (as `local_files` gave them elsewhere); or with
    those that `fetch` gives, in a folder that goes when the process ends.
    """
    if all(os.path.exists(path) for path in paths.values()):
        return spec
    folder = tempfile.mkdtemp(prefix="sensorium-encoder-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, content in fetch().items():
        place = Path(folder) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return spec.with_files(folder)
