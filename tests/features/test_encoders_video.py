"""Video encoders: frame by frame against the image encoders, VideoMAE against transformers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image

from features.columns import PayloadColumns
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.decoders.video import decode
from features.encoders import EncoderSpec, HogSpec, HuggingFaceImageSpec, Kind, Video, parse_encoder
from features.encoders.video import VideoFramesSpec, VideoMaeSpec
from features.payload_keys import payload_key
from features.prepare import Opening, prepared_windows
from features.spec import FeatureSpec
from tests.features.films import film, number_of
from tests.features.vision_models import SIDE, SQUARE, save_vit, vit_options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos() -> list[Video]:
    payloads = [film(50), film(23, format="matroska", size=(60, 40)), film(9, format="avi")]
    return [decode(payload, limits=DEFAULT_LIMITS) for payload in payloads]


class NumberSpec(EncoderSpec):
    """Tells the number that a frame shows, and refuses frame 13; remembers its batches."""

    kind: ClassVar[Kind] = "image"
    batches: ClassVar[list[int]] = []

    type: Literal["tests.features.test_encoders_video.NumberSpec"] = (
        "tests.features.test_encoders_video.NumberSpec"
    )
    offset: float = 0.0
    most: int | None = None
    mean: float | None = None

    @property
    def needs_fit(self) -> bool:
        return self.mean is None and self.offset < 0

    def fitted(self, payloads: Iterable[Any]) -> Self:
        return self.model_copy(update={"mean": float(np.mean([number_of(p) for p in payloads]))})

    def load(self) -> Any:
        return _Number(self)


class _Number:
    dim = 2

    def __init__(self, spec: NumberSpec) -> None:
        self._spec = spec
        if spec.most is not None:
            self.budget = spec.most

    def prepare(self, payload: np.ndarray) -> np.ndarray:
        if number_of(payload) == 13:
            raise ValueError("thirteen")
        return np.array([number_of(payload), self._spec.offset], dtype=np.float32)

    def size(self, prepared: np.ndarray) -> int:
        return int(prepared[0]) + 1

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        NumberSpec.batches.append(len(batch))
        return np.stack(batch)


NUMBER = {"type": "tests.features.test_encoders_video.NumberSpec"}


def frames_spec(image: object = NUMBER, **options: Any) -> VideoFramesSpec:
    return VideoFramesSpec.model_validate({"image": image, **options})


def embed(spec: Any, videos: list[Video]) -> Any:
    encoder = spec.load()
    rows = encoder.encode([encoder.prepare(video) for video in videos])
    assert len(rows) == len(videos)
    for row in rows:
        assert row.dtype == np.float32
        assert row.shape[-1] == encoder.dim
        assert row.ndim == (2 if spec.sequence else 1)
    return rows


# ---------------------------------------------------------------- frame by frame


def test_frames_are_embedded_one_by_one_and_pooled(videos: list[Video]) -> None:
    spec = frames_spec({"type": "hog"}, frames=3)
    sequence = embed(spec.model_copy(update={"output": "sequence"}), videos)
    pooled = embed(spec, videos)
    assert isinstance(pooled, np.ndarray)
    hog = HogSpec().load()
    for video, rows, mean in zip(videos, sequence, pooled, strict=True):
        frames = video.sample(count=3)
        expected = hog.encode([hog.prepare(frame) for frame in frames])
        np.testing.assert_allclose(rows, expected, atol=1e-6)
        np.testing.assert_allclose(mean, expected.mean(axis=0), atol=1e-6)


def test_which_frames_are_taken(videos: list[Video]) -> None:
    def taken(**options: Any) -> list[list[int]]:
        rows = embed(frames_spec(output="sequence", **options), videos)
        return [part[:, 0].astype(int).tolist() for part in rows]

    assert taken(frames=2) == [[12, 37], [5, 17], [2, 6]]
    assert [len(part) for part in taken()] == [8, 8, 8]
    assert taken(rate=1) == [[5, 15, 25, 35, 45], [5, 15], [5]]
    assert taken(rate=1, most_frames=2) == [[12, 37], [5, 15], [5]]


def test_what_is_thinned_is_counted(videos: list[Video]) -> None:
    encoder = frames_spec(rate=1, most_frames=2).load()
    found = [encoder.counts(encoder.prepare(video)) for video in videos]  # type: ignore[attr-defined]
    assert found == [
        {"frames": 2, "thinned": 1},
        {"frames": 2, "thinned": 0},
        {"frames": 1, "thinned": 0},
    ]


def test_frames_go_through_in_batches_of_the_image_encoder(videos: list[Video]) -> None:
    def batches(**image: Any) -> list[int]:
        NumberSpec.batches.clear()
        rows = embed(frames_spec(NUMBER | image, rate=2, output="sequence"), videos)
        expected = [video.times(rate=2) * 10 for video in videos]
        for row, times in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(row[:, 0], np.floor(times + 1e-6))
        return list(NumberSpec.batches)

    assert batches(batch_size=4) == [4, 4, 4, 4, 1]
    # 47 + 1 fits 48 once; the smaller the frames, the more of them fit.
    found = batches(most=48)
    assert found[:2] == [1, 1] and sorted(found) == found and sum(found) == 17


def test_a_frame_that_the_image_encoder_refuses_is_named(videos: list[Video]) -> None:
    encoder = frames_spec(rate=10).load()
    with pytest.raises(ValueError, match=r"the frame at 1\.35 s: thirteen"):
        encoder.prepare(videos[0])


def test_damage_keeps_its_reason() -> None:
    payload = film(100)
    noise = np.random.default_rng(0).bytes(3000)
    video = decode(payload[:20000] + noise + payload[23000:], limits=DEFAULT_LIMITS)
    with pytest.raises(BadPayload, match="damaged video"):
        frames_spec({"type": "hog"}, rate=10).load().prepare(video)


def test_damage_is_quarantined_as_a_fault_of_decoding(tmp_path: Path) -> None:
    payload = film(100)
    noise = np.random.default_rng(0).bytes(3000)
    (tmp_path / "bad.mp4").write_bytes(payload[:20000] + noise + payload[23000:])
    (tmp_path / "good.mp4").write_bytes(payload)
    columns = PayloadColumns(kind="video", columns=("film",))
    cells = ["bad.mp4", "good.mp4", "none.mp4"]
    keys = [payload_key(cell, columns=columns, folder=str(tmp_path)) for cell in cells]
    with ThreadPoolExecutor(2) as pool:
        (window,) = prepared_windows(
            [0, 1, 2],
            read=lambda rows: [cells[row] for row in rows],
            keys=keys,
            opening=Opening(
                columns=columns,
                encoder=frames_spec({"type": "hog"}, rate=10).load(),
                folder=str(tmp_path),
                key_by="stat",
            ),
            pool=pool,
        )
    assert [(bad.row, bad.stage) for bad in window.bad] == [(0, "decode"), (2, "fetch")]
    assert [item.row for item in window.prepared] == [1]
    assert window.counts == {"frames": 100, "thinned": 0}
    assert window.bytes == window.prepared[0].payload.nbytes == 100 * 32 * 32 * 4


def test_full_frames_are_held_one_by_one() -> None:
    few = Limits(values=3 * 48 * 64 * 2)
    video = decode(film(50), limits=few)
    with pytest.raises(BadPayload, match="3 frames"):
        video.sample(count=3)
    assert embed(frames_spec({"type": "hog"}, frames=40), [video]).shape[0] == 1


def test_neighbours_and_threads_change_nothing(videos: list[Video]) -> None:
    spec = frames_spec({"type": "hog"}, frames=5)
    together = embed(spec, videos)
    encoder = spec.load()
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(encoder.prepare, videos * 3))
    alone = np.concatenate([encoder.encode([one]) for one in prepared])  # type: ignore[arg-type]
    np.testing.assert_allclose(alone, np.concatenate([together] * 3), atol=spec.tolerance)


def test_identity_is_that_of_sampling_and_of_the_image_encoder() -> None:
    base = frames_spec({"type": "hog"})
    same = [
        frames_spec({"type": "hog"}, frames=8),
        frames_spec({"type": "hog", "batch_size": 3}),
        frames_spec({"type": "hog", "dtype": "float32"}),
        frames_spec({"type": "hog"}, most_frames=9),
        frames_spec(HogSpec(), batch_size=2),
        pickle.loads(pickle.dumps(base)),
        parse_encoder(json.loads(base.model_dump_json())),
    ]
    assert {spec.fingerprint() for spec in same} == {base.fingerprint()}
    other = [
        frames_spec({"type": "hog"}, frames=9),
        frames_spec({"type": "hog"}, rate=1),
        frames_spec({"type": "hog"}, rate=1, most_frames=9),
        frames_spec({"type": "hog", "size": 40}),
        frames_spec({"type": "hog"}, output="sequence"),
        frames_spec({"type": "hog"}, dtype="float32"),
        frames_spec(),
    ]
    assert len({spec.fingerprint() for spec in [base, *other]}) == len(other) + 1


def test_a_new_version_of_the_image_encoder_is_another_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = frames_spec().fingerprint()
    monkeypatch.setattr(NumberSpec, "version", 2)
    assert frames_spec().fingerprint() != before


def test_the_image_encoders_statistics_are_fitted_on_frames(videos: list[Video]) -> None:
    spec = frames_spec(NUMBER | {"offset": -1}, frames=2)
    assert spec.needs_fit
    fitted = spec.fitted(videos)
    assert not fitted.needs_fit
    assert isinstance(fitted.image, NumberSpec)
    assert fitted.image.mean == np.mean([12, 37, 5, 17, 2, 6])
    assert fitted.fingerprint() != spec.fingerprint()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": 2, "rate": 1.0}, "one of the two"),
        ({"frames": 0}, "greater than or equal to 1"),
        ({"image": {"type": "hashing"}}, "'hashing' is for text"),
        ({"image": {"type": "hgo"}}, "did you mean 'hog'"),
        ({"image": {"type": "hog", "sise": 3}}, "did you mean 'size'"),
        ({"image": {"type": "video_frames", "image": {"type": "hog"}}}, "is for video"),
    ],
)
def test_a_wrong_configuration_is_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=says):
        VideoFramesSpec.model_validate({"image": {"type": "hog"}} | options)


def test_the_schema_describes_the_image_encoder() -> None:
    schema = FeatureSpec.model_json_schema()
    encoder = schema["properties"]["encoder"]
    frames = next(
        schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        for part in encoder["oneOf"]
        if "VideoFrames" in json.dumps(part)[:400]
    )
    choices = json.dumps(frames["properties"]["image"])
    assert "HogSpec" in choices and "HashingSpec" not in choices
    undescribed = {n for n, field in frames["properties"].items() if not field.get("description")}
    assert undescribed == {"type"}


# ---------------------------------------------------------------- Hugging Face


def test_frames_through_a_vision_model(videos: list[Video], tmp_path: Path) -> None:
    folder = str(tmp_path / "vit")
    torch.manual_seed(0)
    save_vit(tmp_path / "vit")
    spec = frames_spec({"type": "huggingface_image", "model": folder}, frames=2)
    image_spec = HuggingFaceImageSpec(model=folder)
    image = image_spec.load()
    for video, row in zip(videos, embed(spec, videos), strict=True):
        frames = [image.prepare(frame) for frame in video.sample(count=2)]
        expected = np.asarray(image.encode(frames)).mean(axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    assert spec.weights() == {f"image/{k}": v for k, v in image_spec.weights().items()}
    assert spec.tolerance == image_spec.tolerance
    relative = parse_encoder(
        {"type": "video_frames", "image": {"type": "huggingface_image", "model": "./vit"}},
        context={"folder": str(tmp_path)},
    )
    assert relative.fingerprint() == frames_spec(spec.image).fingerprint()


def save_videomae(folder: Path, *, frames: int = 4) -> str:
    from transformers import VideoMAEConfig, VideoMAEImageProcessorPil, VideoMAEModel

    torch.manual_seed(0)
    config = VideoMAEConfig(
        **vit_options(),
        num_frames=frames,
        decoder_hidden_size=8,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
    )
    VideoMAEModel(config).save_pretrained(folder)
    VideoMAEImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE).save_pretrained(
        folder
    )
    return str(folder)


def test_videomae_is_that_of_transformers(videos: list[Video], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = save_videomae(tmp_path)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder).eval()
    pooled = embed(VideoMaeSpec(model=folder), videos)
    unit = embed(VideoMaeSpec(model=folder, normalize=True), videos)
    sequences = embed(VideoMaeSpec(model=folder, output="sequence"), videos)
    for video, mean, one, tubes in zip(videos, pooled, unit, sequences, strict=True):
        frames = [Image.fromarray(frame) for frame in video.sample(count=4)]
        with torch.no_grad():
            hidden = model(**processor(frames, return_tensors="pt")).last_hidden_state[0].numpy()
        assert hidden.shape == (2 * 16, 12)
        np.testing.assert_allclose(tubes, hidden, atol=1e-5)
        np.testing.assert_allclose(mean, hidden.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(one, mean / np.linalg.norm(mean), atol=1e-5)


def test_videomae_alone_and_in_a_batch(videos: list[Video], tmp_path: Path) -> None:
    spec = VideoMaeSpec(model=save_videomae(tmp_path))
    together = embed(spec, videos)
    alone = np.concatenate([embed(spec, [video]) for video in reversed(videos)])[::-1]
    np.testing.assert_allclose(together, alone, atol=spec.tolerance)


def test_identity_of_videomae(tmp_path: Path) -> None:
    folder = save_videomae(tmp_path / "one")
    spec = VideoMaeSpec(model=folder)
    assert "model.safetensors" in spec.weights()
    assert VideoMaeSpec(model=folder, batch_size=1).fingerprint() == spec.fingerprint()
    assert VideoMaeSpec(model=folder, output="sequence").fingerprint() != spec.fingerprint()
    more = VideoMaeSpec(model=save_videomae(tmp_path / "two", frames=8))
    assert more.fingerprint() != spec.fingerprint()


def test_another_model_than_videomae_is_refused(tmp_path: Path) -> None:
    save_vit(tmp_path)
    with pytest.raises(ValueError, match=r"type 'vit'.*video_frames"):
        VideoMaeSpec(model=str(tmp_path)).load()
