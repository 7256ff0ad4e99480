"""Video encoders: any image encoder over frames, and VideoMAE over frames as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
from pydantic_core import core_schema

from features.encoders.base import Encoder, EncoderSpec, Kind, Video, import_extra
from features.encoders.huggingface import HuggingFaceSpec, load_model, quiet_loading
from features.fingerprint import Execution


class _ImageEncoder:
    """How pydantic reads and describes a field that holds any encoder of images."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def parse(value: object, info: pydantic.ValidationInfo) -> EncoderSpec:
            from features.encoders import parse_encoder  # which knows this module

            spec = parse_encoder(value, context=info.context)
            if spec.kind != "image" or spec.sequence:
                found = "gives sequences" if spec.kind == "image" else f"is for {spec.kind}"
                raise ValueError(
                    f"`image` takes an encoder that gives one embedding an image; {spec.type!r} "
                    f"{found}"
                )
            return spec

        return core_schema.with_info_before_validator_function(parse, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        from features.encoders import BUILT_IN

        images = [spec for spec in BUILT_IN.values() if spec.kind == "image"]
        built_in = [
            handler(spec.__pydantic_core_schema__) | {"required": ["type"]} for spec in images
        ]
        own = {
            "title": "An image encoder of your own",
            "type": "object",
            "properties": {"type": {"type": "string", "pattern": r"\."}},
            "required": ["type"],
            "additionalProperties": True,
        }
        return {"oneOf": [*built_in, own]}


class VideoFramesSpec(EncoderSpec):
    """Evenly sampled frames of a video, each embedded by an image encoder.

    Give `frames` or `rate`; with neither, 8 frames are taken.
    """

    kind: ClassVar[Kind] = "video"

    type: Literal["video_frames"] = "video_frames"
    frames: Annotated[int | None, pydantic.Field(ge=1, le=4096)] = None
    """Frames per video, at the centres of as many equal parts."""
    rate: Annotated[float | None, pydantic.Field(gt=0, le=240)] = None
    """Frames per second, at the centres of parts of 1 / `rate` seconds."""
    most_frames: Annotated[int, pydantic.Field(ge=1, le=4096)] = 256
    """Most frames of one video with `rate`: a longer one is sampled evenly at so many, and counted
    as `thinned` in the statistics."""
    image: Annotated[pydantic.SerializeAsAny[EncoderSpec], _ImageEncoder()]
    """Encoder of the frames: any of images, with its own options. Its `batch_size` bounds how many
    frames go through it at once; its `dtype` does not matter."""
    output: Literal["pooled", "sequence"] = "pooled"
    """The mean of the frames' embeddings, or all of them in their order."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _eight_by_default(cls, value: Any) -> Any:
        given = (value.get("frames"), value.get("rate")) if isinstance(value, Mapping) else ()
        if given == (None, None):
            return {**value, "frames": 8}
        return value

    @pydantic.model_validator(mode="after")
    def _one_way_to_sample(self) -> Self:
        if self.frames is not None and self.rate is not None:
            raise ValueError("give either `frames` or `rate`, one of the two")
        return self

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    @property
    def tolerance(self) -> float:
        return self.image.tolerance

    def identity(self) -> dict[str, Any]:
        """As ever; of the image encoder, all that can change its embeddings."""
        options = {k: v for k, v in self.image.identity().items() if k != "dtype"}
        image = {"version": self.image.version, "options": options}
        identity = super().identity() | {"image": image}
        if self.rate is None:
            del identity["most_frames"]
        return identity

    def weights(self) -> Mapping[str, str]:
        return {f"image/{name}": digest for name, digest in self.image.weights().items()}

    def local_files(self) -> Mapping[str, str]:
        return self.image.local_files()

    def with_files(self, folder: str) -> Self:
        return self.model_copy(update={"image": self.image.with_files(folder)})

    def caution(self) -> str | None:
        return self.image.caution()

    @property
    def needs_fit(self) -> bool:
        return self.image.needs_fit

    def fitted(self, payloads: Iterable[Any]) -> Self:
        frames = (frame for video in payloads for frame in self.sampled(video))
        return self.model_copy(update={"image": self.image.fitted(frames)})

    def sampled(self, video: Video) -> Iterator[np.ndarray]:
        """The frames that are taken of a video, one by one: uint8 `[H, W, 3]` RGB."""
        return video.each_at(self.times(video))

    def times(self, video: Video) -> np.ndarray:
        """When the frames that are taken of a video are shown, in seconds."""
        if self.rate is None:
            return video.times(count=self.frames)
        if self.is_thinned(video):
            return video.times(count=self.most_frames)
        return video.times(rate=self.rate)

    def is_thinned(self, video: Video) -> bool:
        """Whether a video has more frames at the rate than are taken."""
        return self.rate is not None and video.seconds * self.rate > self.most_frames + 0.5

    def load(self) -> Encoder:
        return _VideoFrames(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frames:
    """The prepared frames of one video."""

    frames: list[Any]
    thinned: bool
    nbytes: int
    """About how much memory they take."""


class _VideoFrames:
    def __init__(self, spec: VideoFramesSpec) -> None:
        self._spec = spec
        self._image = spec.image.load()
        self._budget: int | None = getattr(self._image, "budget", None)
        self.dim = self._image.dim

    def prepare(self, payload: Video) -> _Frames:
        """The frames, prepared for the image encoder one after the other."""
        spec, times = self._spec, self._spec.times(payload)
        frames: list[Any] = []
        for time, pixels in zip(times, payload.each_at(times), strict=True):
            try:
                frames.append(self._image.prepare(pixels))
            except ValueError as error:
                raise ValueError(f"the frame at {time:.2f} s: {error}") from error
        return _Frames(
            frames=frames,
            thinned=spec.is_thinned(payload),
            nbytes=sum(int(getattr(frame, "nbytes", 64)) for frame in frames),
        )

    def size(self, prepared: _Frames) -> int:
        return sum(self._image.size(frame) for frame in prepared.frames)

    def counts(self, prepared: _Frames) -> dict[str, int]:
        """Frames, and videos of which fewer were taken than the rate asks for."""
        return {"frames": len(prepared.frames), "thinned": int(prepared.thinned)}

    def encode(self, batch: list[_Frames]) -> np.ndarray | list[np.ndarray]:
        """As ever; the frames of all videos go through the image encoder in batches of its own."""
        rows_ND = self._embeddings([frame for video in batch for frame in video.frames])
        stops = np.cumsum([len(video.frames) for video in batch])[:-1]
        parts = np.split(rows_ND, stops)
        if self._spec.sequence:
            return parts
        return np.stack([part_TD.mean(axis=0, dtype=np.float64) for part_TD in parts]).astype(
            np.float32
        )

    def _embeddings(self, frames: list[Any]) -> np.ndarray:
        """float32 `[N, D]` of N prepared frames; those of like size share a batch."""
        sizes = [self._image.size(frame) for frame in frames]
        order = sorted(range(len(frames)), key=lambda i: -sizes[i])
        rows_ND = np.empty((len(frames), self.dim), dtype=np.float32)
        start = 0
        while start < len(order):
            most = self._spec.image.batch_size
            if self._budget is not None:
                most = min(most, max(1, self._budget // max(1, sizes[order[start]])))
            places = order[start : start + most]
            rows_ND[places] = self._image.encode([frames[i] for i in places])
            start += most
        return rows_ND


class VideoMaeSpec(HuggingFaceSpec):
    """VideoMAE: a transformer over the tubes (patches through time) of evenly sampled frames.

    Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised
    Video Pre-Training" (NeurIPS 2022). As many frames are taken as the model's configuration says
    (`num_frames`), at the centres of equal parts.
    """

    kind: ClassVar[Kind] = "video"
    companions: ClassVar[tuple[str, ...]] = ("preprocessor_config.json", "processor_config.json")
    needs: ClassVar[tuple[str, ...]] = companions

    type: Literal["videomae"] = "videomae"
    output: Literal["pooled", "sequence"] = "pooled"
    """The mean over all tubes, or the sequence of them: for each step in time, its patches row by
    row."""
    backend: Literal["pil"] = "pil"
    """Library that resizes the frames; another one gives other pixels."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 8
    """Videos per forward pass at most. It does not enter the fingerprint."""

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    def load(self) -> Encoder:
        return _VideoMae(self)


class _VideoMae:
    def __init__(self, spec: VideoMaeSpec) -> None:
        transformers = import_extra("transformers", extra="video")
        import_extra("PIL.Image", extra="video")
        self._spec = spec
        self._loaded = load_model(spec)
        config = self._loaded.model.config
        if config.model_type != "videomae":
            raise ValueError(
                f"`model`: {spec.model!r} is a model of type {config.model_type!r}; `videomae` "
                "takes VideoMAE models. An image model embeds videos frame by frame: `type: "
                "video_frames`"
            )
        with quiet_loading():
            self._processor = transformers.AutoImageProcessor.from_pretrained(
                self._loaded.folder,
                backend=spec.backend,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
        self._frames = int(config.num_frames)
        self.dim = int(config.hidden_size)

    def prepare(self, payload: Video) -> np.ndarray:
        """float32 `[T, 3, h, w]`: the frames, resized and normalised as the model wants them."""
        times = payload.times(count=self._frames)
        return np.stack([self._pixels(frame) for frame in payload.each_at(times)])

    def _pixels(self, frame: np.ndarray) -> np.ndarray:
        """float32 `[3, h, w]`; one frame at a time, since full ones are large."""
        found = self._processor([frame], input_data_format="channels_last", return_tensors="np")
        return np.asarray(found["pixel_values"][0][0], dtype=np.float32)

    def size(self, prepared: np.ndarray) -> int:
        return int(prepared.size)

    def encode(self, batch: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        import torch

        model = self._loaded.model
        pixels_BT3HW = torch.from_numpy(np.stack(batch)).to(self._loaded.device, model.dtype)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            tubes_BND = model(pixel_values=pixels_BT3HW).last_hidden_state.float()
            if self._spec.sequence:
                rows = self._loaded.finish(tubes_BND.flatten(0, 1))
                return list(rows.reshape(len(batch), -1, self.dim))
            return self._loaded.finish(tubes_BND.mean(dim=1))
