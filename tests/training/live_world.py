"""A table of texts and pictures, tiny models to embed them with, and stage 1 over them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from features.encoders.huggingface_image import HuggingFaceImageSpec
from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.snapshot import Snapshot
from features.sources import open_source
from features.spec import FeatureSpec
from tests.features.vision_models import SQUARE, vit_options
from tests.features.world import World
from training.built_in import parse_candidate
from training.candidate import plan_candidates
from training.data.table import EmbeddingTable, load_table
from training.spec import CandidateSpec
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec
from training.tuning.payloads import PayloadSource
from training.tuning.table import LiveTable, table_for

ROWS = 64
TASK = ClassificationSpec(target="label")
WORDS = (("ab", "cab", "bab"), ("xy", "zyx", "yyz"))
"""Words that tell the class."""


def save_bert(folder: Path, *, blind: bool = False) -> None:
    """A BERT of random weights; a `blind` one has one vector for all words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    model = BertModel(config)
    if blind:
        vectors = model.embeddings.word_embeddings.weight.data
        vectors[:] = vectors[-1]
    model.save_pretrained(folder)


def save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    ViTModel(ViTConfig(**vit_options())).save_pretrained(folder)
    ViTImageProcessorPil(size=SQUARE).save_pretrained(folder)


def colours() -> pd.DataFrame:
    """Names of colours, which are the classes, and pictures of them under noise.

    The names are of one length, so a blind model embeds them all alike.
    """
    random = np.random.default_rng(0)
    names = ("blue", "cyan", "lime", "pink")
    codes = random.integers(len(names), size=ROWS)
    shares = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 0], [1, 0, 1]])
    photos = []
    for code in codes:
        file = io.BytesIO()
        pixels = random.integers(0, 120, (32, 32, 3)) + 120 * shares[code]
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        photos.append(file.getvalue())
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(ROWS)],
            "caption": [None if i % 9 == 5 else names[code] for i, code in enumerate(codes)],
            "photo": photos,
            "label": [names[code] for code in codes],
            "split": [("train", "train", "validation", "test")[i % 4] for i in range(ROWS)],
        }
    )


def picture(code: int, random: np.random.Generator) -> bytes:
    """Stripes, across or upright, under noise: a PNG."""
    pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
    stripes = pixels if code else pixels.transpose(1, 0, 2)
    stripes[::4] += 120
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class LiveWorld:
    """The table, embedded by stage 1, with all that is needed to tune its encoders."""

    def __init__(
        self,
        folder: Path,
        *,
        frame: pd.DataFrame | None = None,
        blind: bool = False,
        **options: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        save_bert(folder / "bert", blind=blind)
        save_vit(folder / "vit")
        random = np.random.default_rng(0)
        codes = random.integers(2, size=ROWS)
        texts = [" ".join(random.choice(WORDS[c], size=1 + i % 4)) for i, c in enumerate(codes)]
        self.world = World(folder)
        self.world.frame = pd.DataFrame(
            {
                "id": [f"s{i}" for i in range(ROWS)],
                "caption": [None if i % 9 == 5 else text for i, text in enumerate(texts)],
                "photo": [None if i % 7 == 3 else picture(c, random) for i, c in enumerate(codes)],
                "label": codes,
                "split": [("train", "train", "validation", "test")[i % 4] for i in range(ROWS)],
            }
        )
        if frame is not None:
            self.world.frame = frame
        self.specs = {
            "caption": HuggingFaceTextSpec(
                **{"model": str(folder / "bert"), "dtype": "float32"} | options
            ),
            "photo": HuggingFaceImageSpec(model=str(folder / "vit"), dtype="float32"),
        }
        self.world.specs = self.specs  # type: ignore[assignment]
        self.snapshot: Snapshot = self.world.run()[2]
        self.store = self.world.store
        self.payloads = PayloadSource(
            source=open_source(self.world.path, folder=str(folder)),
            columns={
                m: FeatureSpec(column=m, encoder=spec).payload_columns
                for m, spec in self.specs.items()
            },
        )

    @cached_property
    def table(self) -> EmbeddingTable:
        return load_table(self.store, self.snapshot, task=TASK, modalities=tuple(self.specs))

    @contextmanager
    def live(self, *modalities: str, payloads: PayloadSource | None = None) -> Iterator[LiveTable]:
        """The table with some modalities, or all, as payloads."""
        with table_for(
            finetune(encoders=dict.fromkeys(modalities or self.specs, "full")),
            table=self.table,
            store=self.store,
            snapshot=self.snapshot,
            payloads=payloads or self.payloads,
        ) as table:
            assert isinstance(table, LiveTable)
            yield table

    def planned(self, spec: CandidateSpec, *, training: TrainingSpec) -> Any:
        (planned,) = plan_candidates(
            self.store, snapshot=self.snapshot, task=TASK, candidates=[spec], training=training
        )
        return planned


def finetune(**options: Any) -> CandidateSpec:
    """A small early fusion whose caption encoder is tuned whole, unless it is said otherwise."""
    head = {"type": "early", "width": 8, "dropout": 0.2, "learning_rate": 1e-2}
    head |= options.pop("head", {})
    made = {
        "type": "finetune",
        "head": head,
        "encoders": {"caption": "full"},
        "encoder_learning_rate": 1e-3,
    }
    return parse_candidate(made | options)
