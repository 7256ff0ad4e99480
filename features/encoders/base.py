"""What an encoder is: a frozen spec, which loads into an object that turns payloads into rows."""

from __future__ import annotations

import abc
import importlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pydantic

from features.fingerprint import Execution, Spec, fingerprint

if TYPE_CHECKING:
    import torch
    from torch import nn

Kind = Literal["text", "image", "audio", "video", "series", "table", "vector"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """A decoded recording."""

    samples: np.ndarray
    """float32 `[channels, T]`, finite; full scale is -1..1."""
    rate: int
    """Samples a second, in Hz."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """A decoded time series."""

    values: np.ndarray
    """float64 `[T, C]`; NaN where a channel has a gap."""
    times: np.ndarray | None = None
    """float64 `[T]`, seconds, ascending; None if the steps are even."""


class Video(abc.ABC):
    """A recording, or the cut of one; its frames are decoded when they are asked for.

    Times are seconds from the beginning of the recording or cut. The frame at a time is the one
    that is shown then: the last whose time stamp is not after it, or the first one if the film
    has not begun yet. Whoever wants frames in a small size says so, and a full frame is held for
    one moment only. Any number of threads may ask at once.
    """

    seconds: float
    """Length."""

    @abc.abstractmethod
    def each_at(
        self, times: Sequence[float] | np.ndarray, *, size: tuple[int, int] | None = None
    ) -> Iterator[np.ndarray]:
        """The frames at some times, which ascend, one by one: uint8 `[H, W, 3]` RGB.

        With `size`, (H, W), they are resized to it, without regard to their proportions. Raises
        ValueError (BadPayload), with a reason for a person, if one cannot be had.
        """

    @abc.abstractmethod
    def sound(self) -> Sound:
        """The sound track; ValueError (BadPayload) if there is none that can be decoded."""

    def times(self, *, count: int | None = None, rate: float | None = None) -> np.ndarray:
        """Evenly spread times, float64 `[T]`: the centres of equal parts.

        `count` parts of the whole (so one is its middle), or parts of 1 / `rate` seconds, of
        which there is at least one.
        """
        if (count is None) == (rate is None):
            raise ValueError("give either `count` or `rate`, one of the two")
        if count is not None:
            if count < 1:
                raise ValueError(f"`count` is {count}, and must be at least 1")
            return (np.arange(count) + 0.5) * (self.seconds / count)
        if rate is None or not 0 < rate < math.inf:
            raise ValueError(f"`rate` is {rate}, and must be a number of frames a second")
        # Rounded, since 0.7 * 10 is a little less than 7.
        count = math.ceil(round(self.seconds * rate, 6) - 0.5)
        centres = (np.arange(count) + 0.5) / rate
        return centres if len(centres) else np.array([self.seconds / 2])

    def frames_at(
        self, times: Sequence[float] | np.ndarray, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The frames at some times, in the order of these: uint8 `[T, H, W, 3]` RGB."""
        if not len(times):
            raise ValueError("`times` is empty; ask for one frame at least")
        order = np.argsort(times, kind="stable")
        ascending = np.asarray(times, dtype=np.float64)[order]
        frames: np.ndarray | None = None
        for place, frame in zip(order, self.each_at(ascending, size=size), strict=True):
            if frames is None:
                frames = np.empty((len(times), *frame.shape), dtype=np.uint8)
            frames[place] = frame
        assert frames is not None, "there is a frame for each time"
        return frames

    def sample(
        self,
        *,
        count: int | None = None,
        rate: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Evenly spread frames, uint8 `[T, H, W, 3]` RGB; see `times` and `each_at`."""
        return self.frames_at(self.times(count=count, rate=rate), size=size)


class Encoder(Protocol):
    """A loaded encoder: a pure function of its spec and weights.

    `prepare` runs one payload at a time, in several threads at once and ahead of `encode`; it
    takes what `features.payloads` decodes for the kind, and raises ValueError, with a reason for
    a person, for a payload it cannot use.

    | kind | what is decoded |
    |---|---|
    | text | `str` |
    | image | uint8 `[H, W, 3]` RGB |
    | audio | `Sound`: float32 `[channels, T]` in -1..1, and the rate in Hz |
    | video | `Video`: frames and sound track, decoded when they are asked for |
    | series | `Series`: float64 `[T, C]`, NaN in gaps, and times if there are any |
    | table | dict of a record's cells by column; None where one is missing |
    | vector | float64 `[D]` |

    An encoder may have these, too:

    `budget`: int, the most that one batch may have of padded size, which is the largest `size`
    in it times its rows. Without it, `batch_size` alone bounds a batch.
    `takes_pillow`: true if `prepare` takes an RGB image of Pillow's, too, and had rather have
    that of a payload than the array: it saves two copies.
    `prepare_all(payloads) -> list`: all payloads of a window at once, instead of `prepare` for
    each; in the place of a payload that cannot be used stands the ValueError.
    `counts(prepared) -> dict[str, int]`: what is counted over a shard for its statistics, such as
    `{"truncated": 1}`.
    """

    dim: int
    """Width D of an embedding."""

    def prepare(self, payload: Any) -> Any:
        """One decoded payload → what `encode` takes one of."""

    def size(self, prepared: Any) -> int:
        """How long one prepared payload is; batches are formed of rows of like size."""

    def encode(self, batch: list[Any]) -> np.ndarray | list[np.ndarray]:
        """B prepared payloads → float32 `[B, D]`, finite, row by row independent.

        Where the spec's `sequence` is true: a list of B arrays `[T, D]`, each T at least 1.
        """


class TrainableEncoder(Encoder, Protocol):
    """A loaded encoder whose weights can be tuned: `embed` is `encode`, differentiably."""

    @property
    def module(self) -> nn.Module:
        """All weights, in evaluation mode; what is done to them in place counts from then on."""

    def embed(self, batch: list[Any]) -> torch.Tensor | list[torch.Tensor]:
        """B prepared payloads → float32 `[B, D]`; of sequences a list of B tensors `[T, D]`.

        On the module's device, with gradients, and equal to what `encode` gives.
        """

    def save(self, folder: str, *, module: nn.Module | None = None) -> None:
        """Write a folder that the spec, with it as `model`, can load the encoder from.

        With the weights of another module of the same kind, if one is given.
        """


class EncoderSpec(Spec):
    """Base of all encoder specs. A subclass is one encoder's name, options and loader.

    A subclass gives `type` a `Literal` (its name in YAML), sets `kind`, and implements
    `load`; one with weights implements `weights` too.
    """

    kind: ClassVar[Kind]
    version: ClassVar[int] = 1
    """Raised by one whenever the code changes in a way that can change a result."""
    type: str
    dtype: Literal["float16", "float32"] = "float16"
    """Type in which the embeddings are stored; computing is done in the encoder's precision."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 64
    """Rows per forward pass at most. It does not enter the fingerprint."""

    @property
    def sequence(self) -> bool:
        """Whether a payload becomes a sequence of embeddings `[T, D]`, and not one `[D]`."""
        return False

    @property
    def tolerance(self) -> float:
        """How far a row may differ (absolute) when it is batched with other neighbours."""
        return 1e-5

    def weights(self) -> Mapping[str, str]:
        """Content hash of each file of weights and configuration, by name; empty without any."""
        return {}

    def load(self) -> Encoder:
        """Load the weights and return the encoder. Slow; called once a process."""
        raise NotImplementedError(f"{type(self).__name__} has no load(); an encoder needs one")

    @property
    def trainable(self) -> bool:
        """Whether its weights can be tuned with the model that takes its embeddings."""
        return False

    def load_trainable(self) -> TrainableEncoder:
        """Load the weights in float32, to be tuned; ValueError if there is nothing to tune."""
        raise ValueError(
            f"the encoder {self.type!r} has no weights that can be tuned; "
            "`huggingface_text`, `huggingface_image` and `huggingface_audio` have"
        )

    def local_files(self) -> Mapping[str, str]:
        """The files of this machine that `load` reads, by the names under which `with_files` looks
        for them in a folder; none if there are none, or if they come from a hub.

        ValueError if one that has to be there is not.
        """
        return {}

    def with_files(self, folder: str) -> Self:
        """The same encoder, whose `local_files` lie in a folder; on another machine, say."""
        return self

    def caution(self) -> str | None:
        """What to tell, before work begins on this machine, the one who has chosen the options.

        A sentence, or None if there is nothing to say. Importing a model library is allowed here.
        """
        return None

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ValueError if payloads of these columns cannot be what the encoder takes."""

    @property
    def needs_fit(self) -> bool:
        """Whether the encoder takes statistics of the training split that it does not have yet."""
        return False

    def fitted(self, payloads: Iterable[Any]) -> Self:
        """The spec with the statistics of some decoded training payloads as fields of its own.

        They are given in an order that the payloads alone decide, so the result is the same on
        every machine; being fields, the statistics enter the fingerprint and travel with the spec.
        """
        raise NotImplementedError(f"{type(self).__name__} needs no fit")

    def fingerprint(self) -> str:
        """Identity of this encoder: type, version, options that matter, content of the weights."""
        return fingerprint(
            {
                "encoder": self.type,
                "version": self.version,
                "options": self.identity(),
                "weights": dict(self.weights()),
            }
        )


def import_extra(name: str, *, extra: str) -> Any:
    """An optional module, imported; ImportError with the `pip install` line if it is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise  # the module is there, and misses one of its own
        raise ImportError(
            f"{name} is not installed, and {extra} payloads or encoders need it: "
            f"pip install 'sensorium[{extra}]'"
        ) from error
