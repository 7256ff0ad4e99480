"""What all Hugging Face encoders share: which weights, from where, what they are, and loading.

The weights are named by a hub id with a commit, or by a folder, and identified by content:
the same files in another place are the same encoder.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import EncoderSpec, import_extra
from features.encoders.precision import imitates_bfloat16, mend_convolutions
from features.fingerprint import DIGEST_BYTES, Execution, fingerprint

NAMES_OF_ORIGIN = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        "special_tokens_map_file",
        "tokenizer_file",
    }
)
"""Keys of configuration files that say where a model came from, and change no result."""
ONLY_FOR_TRAINING = ("masked_spec_embed",)
"""Tensors of which no forward pass of a finished model makes use, and many models lack."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelFolderSpec(EncoderSpec):
    """Base of the encoders whose files lie in one folder, of this machine or of the hub."""

    model: Annotated[str, Execution]
    """Hub id such as `sentence-transformers/all-MiniLM-L6-v2`, or a folder with the model's files.

    Weights count by their content, so where they lie does not enter the fingerprint. A relative
    path starts from the YAML's folder, or the current one where there is no YAML."""
    revision: Annotated[str | None, Execution] = None
    """Commit of the hub's model, 40 hexadecimal digits; a branch or tag could move. None for a
    folder."""

    @pydantic.field_validator("model")
    @classmethod
    def _make_folder_absolute(cls, value: str, info: pydantic.ValidationInfo) -> str:
        base = (info.context or {}).get("folder") or os.getcwd()
        path = os.path.normpath(os.path.join(base, os.path.expanduser(value)))
        if value.startswith((".", "/", "~")) or os.path.isdir(path):
            return path
        if not _HUB_ID.fullmatch(value):
            raise ValueError(f"{value!r} is neither a folder that is there nor the id of a model")
        return value

    @pydantic.model_validator(mode="after")
    def _pinned(self) -> Self:
        if os.path.isabs(self.model):
            if self.revision is not None:
                raise ValueError(
                    f"`revision` is for models of the hub, and {self.model!r} is a folder; "
                    "leave it out"
                )
        elif self.revision is None or not _COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"pin the commit of {self.model!r}: `revision` is the 40 hexadecimal digits that "
                f"the model's page shows under Files, History; not {self.revision!r}. (If a "
                "folder was meant: there is none of that name.)"
            )
        return self

    def weights(self) -> Mapping[str, str]:
        """Content hash of each file that decides the result; downloads them if they are missing.

        Raises ValueError if the folder does not hold a model that may be loaded.
        """
        folder = self.folder()
        return {name: hash_file(os.path.join(folder, name)) for name in self._files(folder)}

    def local_files(self) -> Mapping[str, str]:
        if not os.path.isabs(self.model):
            return {}
        folder = self.folder()
        return {name: os.path.join(folder, name) for name in self._files(folder)}

    def with_files(self, folder: str) -> Self:
        return self.model_copy(update={"model": folder})

    def folder(self) -> str:
        """The folder that holds the files, downloaded if need be."""
        if os.path.isabs(self.model):
            if not os.path.isdir(self.model):
                raise ValueError(f"`model`: there is no folder {self.model!r}")
            return self.model
        hub = import_extra("huggingface_hub", extra=self.kind)
        errors = import_extra("huggingface_hub.errors", extra=self.kind)
        patterns = self._patterns()

        def snapshot(*, local_files_only: bool) -> str:
            try:
                return str(
                    hub.snapshot_download(
                        self.model,
                        revision=self.revision,
                        allow_patterns=patterns,
                        local_files_only=local_files_only,
                    )
                )
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
                raise ValueError(
                    f"`model`: the hub has no model {self.model!r} with the commit "
                    f"{self.revision}, or you may not read it (then set HF_TOKEN)"
                ) from error

        try:
            folder = snapshot(local_files_only=True)
            self._files(folder)
        except (errors.LocalEntryNotFoundError, ValueError):
            folder = snapshot(local_files_only=False)
        come = [name for name, field in self._asked_for().items() if self._has_come(name, field)]
        if come:
            folder = snapshot(local_files_only=False)
        return folder

    def _has_come(self, name: str, field: str) -> bool:
        """Whether a file of the hub was downloaded just now; one question a machine.

        Another program that filled the cache may have left the file out.
        """
        hub = import_extra("huggingface_hub", extra=self.kind)
        errors = import_extra("huggingface_hub.errors", extra=self.kind)
        if hub.try_to_load_from_cache(self.model, name, revision=self.revision) is not None:
            return False  # it is there, or known not to exist
        try:
            hub.hf_hub_download(self.model, name, revision=self.revision)
        except errors.LocalEntryNotFoundError as error:
            raise ValueError(
                f"`model`: nothing on this machine says whether {self.model!r} has a {name}, and "
                f"the hub cannot be reached; load the model once where it can, or set `{field}`"
            ) from error
        except errors.EntryNotFoundError:
            return False  # which the cache now says
        return True

    def _asked_for(self) -> Mapping[str, str]:
        """Files that decide the result even by not being there, and the field in their place."""
        return {}

    def _patterns(self) -> list[str]:
        """Patterns of the files to download that `_files` may name."""
        raise NotImplementedError

    def _files(self, folder: str) -> list[str]:
        """Names of the files that decide the result; ValueError if one is missing."""
        raise NotImplementedError


class HuggingFaceSpec(ModelFolderSpec):
    """Base of the encoders whose model is loaded by transformers."""

    companions: ClassVar[tuple[str, ...]]
    """Patterns of the files beside config.json and the weights that decide the result."""
    needs: ClassVar[tuple[str, ...]]
    """Patterns of which at least one has to match a file."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type in which the model computes."""
    normalize: bool = False
    """Whether an embedding is scaled to length 1."""
    trust_remote_code: bool = False
    """Whether to run Python code that comes with the model. Read the code first."""
    allow_pickle: Annotated[bool, Execution] = False
    """Whether weights that are no safetensors may be loaded. A pickle can run any code."""

    @property
    def in_float32(self) -> Self:
        """The same, computing in float32: what is tuned loses too much in anything less."""
        return self.model_copy(update={"precision": "float32"})

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.precision == "float32" else 5e-2

    def caution(self) -> str | None:
        if self.precision == "bfloat16" and imitates_bfloat16():
            return (
                "`precision: bfloat16` is slow on this machine, whose CPU has no instructions for "
                "it; `precision: float32` would be about 5 times faster"
            )
        return None

    def _patterns(self) -> list[str]:
        patterns = ["config.json", *self.companions, *self._weight_patterns()]
        return patterns + ["*.py"] * self.trust_remote_code

    def _weight_patterns(self) -> list[str]:
        stems = ["model*.safetensors"]
        if self.allow_pickle:
            stems.append("pytorch_model*.bin")
        return [name for stem in stems for name in (stem, f"{stem.replace('*', '')}.index.json")]

    def _files(self, folder: str) -> list[str]:
        """Names of the files that transformers will read."""
        there = set(os.listdir(folder))
        if "config.json" not in there:
            raise ValueError(f"`model`: {self.model!r} has no config.json")
        if "adapter_config.json" in there:
            raise ValueError(f"`model`: {self.model!r} is an adapter; merge it into its base model")
        found = {name for name in there if _matches(name, self.companions)}
        if not any(_matches(name, self.needs) for name in found):
            raise ValueError(f"`model`: {self.model!r} has none of {', '.join(self.needs)}")
        if self.trust_remote_code:
            found |= {name for name in there if name.endswith(".py")}
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                code = json.dumps(json.load(file).get("auto_map", {}))
            if "--" in code:
                raise ValueError(
                    f"`model`: the code of {self.model!r} lies in another repository, which no "
                    f"revision pins ({code}); copy model and code into one folder"
                )
        return sorted({"config.json", *found, *self._weight_files(folder, there)})

    def _weight_files(self, folder: str, there: set[str]) -> list[str]:
        """The weights, in the order of preference that transformers has."""
        candidates = ["model.safetensors"] + ["pytorch_model.bin"] * self.allow_pickle
        for name in candidates:
            if name in there:
                return [name]
            index = f"{name}.index.json"
            if index in there:
                with open(os.path.join(folder, index), encoding="utf-8") as file:
                    parts = sorted(set(json.load(file)["weight_map"].values()))
                missing = [part for part in parts if part not in there]
                if missing:
                    raise ValueError(f"`model`: {self.model!r} lacks {', '.join(missing)}")
                return [index, *parts]
        hint = ""
        if any(name.endswith((".bin", ".pt", ".pth")) for name in there):
            hint = " (`allow_pickle: true` loads pytorch_model.bin, which can run any code)"
        raise ValueError(f"`model`: {self.model!r} has no model.safetensors{hint}")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A transformers model in evaluation mode, and where it came from and runs."""

    model: Any
    folder: str
    normalize: bool
    spec: HuggingFaceSpec

    @property
    def device(self) -> Any:
        """Where the model is now: who tunes it may have moved it since it was loaded."""
        return self.model.device

    def with_model(self, model: Any) -> LoadedModel:
        """The same with another module, such as the encoder of an encoder and decoder."""
        return replace(self, model=model)

    def scaled(self, pooled_BD: Any) -> Any:
        """The tensor `[B, D]`, its rows of length 1 if the spec says so."""
        import torch

        return torch.nn.functional.normalize(pooled_BD, dim=1) if self.normalize else pooled_BD

    def finish(self, pooled_BD: Any) -> np.ndarray:
        """The same as a float32 array."""
        array: np.ndarray = self.scaled(pooled_BD).cpu().numpy()
        return array

    def save(self, folder: str, *, module: Any | None = None) -> None:
        """The model in a folder as the hub has them, with all files that it was loaded with.

        The weights are those of `module` if one is given, a copy of the model.
        """
        patterns, weights = self.spec._patterns(), self.spec._weight_patterns()
        for path in glob.iglob(os.path.join(self.folder, "**"), recursive=True):
            name = os.path.relpath(path, self.folder)
            if not os.path.isfile(path) or not _matches(name, tuple(patterns)):
                continue
            if name != "config.json" and not _matches(name, tuple(weights)):
                os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
                shutil.copyfile(path, os.path.join(folder, name))
        with quiet_loading():
            (self.model if module is None else module).save_pretrained(folder)


def load_model(spec: HuggingFaceSpec) -> LoadedModel:
    """The model, on the GPU if there is one. Raises ValueError if its weights are not all there."""
    import torch

    transformers = import_extra("transformers", extra=spec.kind)
    folder = spec.folder()
    spec._files(folder)
    with quiet_loading():
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            dtype=getattr(torch, spec.precision),
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=None if spec.allow_pickle else True,
            local_files_only=True,
            output_loading_info=True,
        )
    # transformers fills what is missing with random numbers. A pooler is often not trained.
    lacking = sorted(key for key in loading["missing_keys"] if not key.endswith(ONLY_FOR_TRAINING))
    missing = [key for key in lacking if "pooler" not in key]
    if missing or (lacking and getattr(spec, "pooling", None) == "pooler"):
        names = missing or lacking
        raise ValueError(
            f"`model`: the weights of {spec.model!r} lack {len(names)} tensors of "
            f"{type(model).__name__}, such as {names[0]!r}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().requires_grad_(False).to(device)
    if device == "cpu" and spec.precision == "bfloat16":
        mend_convolutions(model)
    return LoadedModel(model=model, folder=folder, normalize=spec.normalize, spec=spec)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """transformers without progress bars and notices, which would come from every worker."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def hash_file(path: str) -> str:
    """Content hash of a file, or of what a JSON configuration says."""
    status = os.stat(path)
    return _hash_content(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _hash_content(path: str, size: int, changed: int) -> str:
    """Hash of a file, or of what a JSON configuration says; read once while it does not change."""
    if path.endswith("config.json"):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        return fingerprint({k: v for k, v in config.items() if k not in NAMES_OF_ORIGIN})
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES))
    return digest.hexdigest()
