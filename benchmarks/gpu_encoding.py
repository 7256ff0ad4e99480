"""Texts and images through models on a GPU, beside bare loops, and what a full memory does.

    python -m benchmarks.gpu_encoding [--quick] [--rows N] [--repeats N] [--folder DIR]

Needs torch with CUDA and transformers, and neither Ray nor MLflow: stage 1 runs as inside an actor.
Models have random weights and are made here: BERTs with MiniLM's and the base's width, ViT-B/16.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import command
from benchmarks.measure import short
from benchmarks.media import jpegs
from benchmarks.peers import prepared_ahead
from benchmarks.results import Target, report
from benchmarks.tables import texts, write_table
from features.embedding import embed_shards
from features.encoders import Encoder, EncoderSpec
from features.encoders.huggingface_image import HuggingFaceImageSpec
from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.encoding import Prepared, Rows, encode_rows
from features.planning import make_plan
from features.sample_shards import write_samples
from features.sources import RowReader, open_source
from features.spec import DatasetSpec, FeatureSpec
from features.storage import LocalStorage
from features.store import Store

TEXT_MODELS = {"BERT 6 x 384": (6, 384, 12), "BERT 12 x 768": (12, 768, 12)}
"""Layers, width and heads."""
VOCABULARY = 30_000
TOKENS, IMAGES = 65_536, 256
"""Padded tokens, and images, of a batch of the bare loops."""
LONGEST = 256
THREADS = len(os.sched_getaffinity(0))


@dataclass(kw_only=True)
class Found:
    """Rows of the table, and targets."""

    rows: list[list[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


def main() -> None:
    options = command.parse(__doc__, rows=40_000, quick=4_000)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu_encoding needs a GPU, and torch sees none")
    name, found = torch.cuda.get_device_name(), Found()
    for measure in (encode_texts, encode_images):
        measure(options.folder, rows=options.rows, repeats=options.repeats, into=found)
    report(
        "gpu_encoding",
        head=("what", "rows/s", "least–most", "of the bare loop", "GPU busy"),
        rows=found.rows,
        targets=found.targets,
        remarks=[
            f"One {name}, {THREADS} CPUs, bfloat16, Parquet to Parquet, {options.repeats} runs in "
            "turn after one to warm up, in one process. Busy: the share of the time in which the "
            "GPU had a kernel to run, as the driver samples it."
        ],
        write=not options.quick,
    )
    found = halve_when_out_of_memory(options.folder)
    report(
        "gpu_memory",
        head=("memory allowed", "rows embedded", "forward passes", "least cosine"),
        rows=found.rows,
        targets=found.targets,
        remarks=[
            f"{name}: 1,024 images in one batch of ViT-B/16, in bfloat16, halved until it fits; "
            "passes that failed are counted."
        ],
        write=not options.quick,
    )


def encode_texts(folder: Path, *, rows: int, repeats: int, into: Found) -> None:
    place = folder / f"texts-{rows}"
    made = texts(rows)
    if not (place / "table").exists():
        write_table(place, {"text": made})
    for name, (layers, width, heads) in TEXT_MODELS.items():
        model = folder / f"bert-{layers}-{width}"
        _save_bert(model, layers=layers, width=width, heads=heads, corpus=made[:4_000])
        spec = HuggingFaceTextSpec(model=str(model), precision="bfloat16", max_length=LONGEST)
        _compare(
            name, place=place, column="text", spec=spec, loop=_text_loop(model),
            repeats=repeats, into=into,
        )  # fmt: skip


def encode_images(folder: Path, *, rows: int, repeats: int, into: Found) -> None:
    rows //= 4
    place, model = folder / f"images-{rows}", folder / "vit"
    if not (place / "table").exists():
        some = jpegs(min(rows, 500))
        # Unlike one another by a comment after the end of the image, so that none is a repetition.
        write_table(place, {"image": [some[i % len(some)] + b"%d" % i for i in range(rows)]})
    if not model.exists():
        from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

        torch.manual_seed(0)
        ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(model)
        ViTImageProcessorPil().save_pretrained(model)
    spec = HuggingFaceImageSpec(model=str(model), precision="bfloat16")
    _compare(
        "ViT-B/16", place=place, column="image", spec=spec, loop=_image_loop(model),
        repeats=repeats, into=into,
    )  # fmt: skip


def _compare(
    name: str,
    *,
    place: Path,
    column: str,
    spec: EncoderSpec,
    loop: Callable[[Sequence[Any]], np.ndarray],
    repeats: int,
    into: Found,
) -> None:
    """The project's way of encoding a table and a bare loop's, in turn."""
    encoder = spec.load()
    ways: dict[str, Callable[[], int]] = {
        "bare loop": lambda: _bare(loop, place=place, column=column),
        "this project": lambda: _ours(encoder, spec=spec, place=place, column=column),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    busy: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, run in ways.items():
            with _busy_share() as share:
                begun = time.perf_counter()
                count = run()
                seconds = time.perf_counter() - begun
            print(f"  {name}, {way}: {seconds:.2f} s, busy {share()}", flush=True)
            if turn:
                rates[way].append(count / seconds)
                busy[way].append(share())
    best = statistics.median(rates["bare loop"])
    for way in ways:
        rate = statistics.median(rates[way])
        into.rows.append(
            [
                f"{name}, {way}",
                short(rate),
                f"{short(min(rates[way]))}–{short(max(rates[way]))}",
                f"{rate / best:.2f}",
                f"{statistics.median(busy[way]):.0%}",
            ]
        )
    ratio = statistics.median(rates["this project"]) / best
    into.targets.append(
        Target(what=f"{name}, of the bare loop", limit=0.9, found=ratio, at_least=True)
    )


def _bare(loop: Callable[[Sequence[Any]], np.ndarray], *, place: Path, column: str) -> int:
    paths = sorted((place / "table").glob("*.parquet"))
    table = pq.read_table(paths, columns=["id", column])
    values = loop(table[column].to_pylist())
    flat = pa.array(values.astype(np.float16).reshape(-1))
    rows = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    pq.write_table(pa.table({"id": table["id"], "embedding": rows}), place / "bare.parquet")
    return len(table)


def _ours(encoder: Encoder, *, spec: EncoderSpec, place: Path, column: str) -> int:
    """Shards embedded as an actor does it; planning and sample shards are not in the time."""
    plan, store = _planned(spec, place=place, column=column)
    columns = FeatureSpec(column=column, encoder=spec).payload_columns
    results = embed_shards(
        plan.work,
        store=store,
        spec=spec,
        encoder=encoder,
        source=plan.source,
        reader=RowReader(plan.source, columns=columns.names, text=columns.text_names),
        columns=columns,
        payload_key_by="stat",
    )
    count = sum(result.embedded for result in results)
    shutil.rmtree(place / "store" / "embeddings")
    return count


@functools.cache
def _planned(spec: EncoderSpec, *, place: Path, column: str) -> tuple[Any, Store]:
    shutil.rmtree(place / "store", ignore_errors=True)
    store = Store(LocalStorage(place / "store"))
    plan = make_plan(
        name="gpu",
        source=open_source("table", folder=str(place)),
        dataset=DatasetSpec(path="table", id="id", split={"group": "id"}),
        features={column: FeatureSpec(column=column, encoder=spec)},
        target="label",
        store=store,
    )
    write_samples(plan, store=store)
    return plan, store


def _text_loop(folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Tokenized at once, the longest first, by a budget of tokens; nothing waits for the GPU."""
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, add_pooling_layer=False)
    model = model.eval().cuda()

    @torch.inference_mode()
    def loop(payloads: Sequence[str]) -> np.ndarray:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(payloads))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        parts, start = [], 0
        while start < len(order):
            longest = len(ids[order[start]])
            batch = order[start : start + max(1, TOKENS // longest)]
            tokens_BT = np.zeros((len(batch), longest), dtype=np.int64)
            for place, row in enumerate(batch):
                tokens_BT[place, : len(ids[row])] = ids[row]
            lengths_B = torch.tensor([len(ids[row]) for row in batch]).pin_memory()
            tokens = torch.from_numpy(tokens_BT).pin_memory().cuda(non_blocking=True)
            lengths_B1 = lengths_B.cuda(non_blocking=True)[:, None]
            mask_BT = torch.arange(longest, device="cuda") < lengths_B1
            states_BTD = model(input_ids=tokens, attention_mask=mask_BT.long()).last_hidden_state
            mask_BT1 = mask_BT[..., None]
            parts.append((states_BTD * mask_BT1).sum(1, dtype=torch.float32) / lengths_B1)
            start += len(batch)
        found = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
        found[order] = torch.cat(parts).cpu().numpy()
        return found

    return loop


def _image_loop(folder: Path) -> Callable[[Sequence[bytes]], np.ndarray]:
    """Pillow in as many threads as there are CPUs, two batches ahead of the GPU."""
    from PIL import Image
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder, dtype=torch.bfloat16, add_pooling_layer=False)
    model = model.eval().cuda()

    def decode(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))

    @torch.inference_mode()
    def loop(payloads: Sequence[bytes]) -> np.ndarray:
        parts = []
        for pixels in prepared_ahead(payloads, prepare=decode, batch=IMAGES, threads=THREADS):
            batch_BHW3 = torch.from_numpy(np.stack(pixels)).pin_memory().cuda(non_blocking=True)
            batch_B3HW = (batch_BHW3.bfloat16() / 127.5 - 1).permute(0, 3, 1, 2)
            states_BTD = model(pixel_values=batch_B3HW).last_hidden_state
            parts.append(states_BTD[:, 1:].float().mean(dim=1))
        found: np.ndarray = torch.cat(parts).cpu().numpy()
        return found

    return loop


def _save_bert(folder: Path, *, layers: int, width: int, heads: int, corpus: Sequence[str]) -> None:
    """A BERT with random weights, and a WordPiece tokenizer learnt from some texts."""
    from tokenizers.implementations import BertWordPieceTokenizer  # type: ignore[attr-defined]
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    if (folder / "config.json").exists():
        return
    learnt = BertWordPieceTokenizer()
    learnt.train_from_iterator(iter(corpus), vocab_size=VOCABULARY, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * width,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=learnt._tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=512,
    ).save_pretrained(folder)  # fmt: skip


@contextmanager
def _busy_share() -> Iterator[Callable[[], float]]:
    """How busy the driver says that the GPU is; asked every 20 ms."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    sampler = subprocess.Popen([*query, "-lms", "20"], stdout=subprocess.PIPE, text=True)
    seen: list[float] = []

    def read() -> None:
        assert sampler.stdout is not None
        seen.extend(float(line) / 100 for line in sampler.stdout if line.strip().isdigit())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield lambda: statistics.fmean(seen) if seen else float("nan")
    finally:
        sampler.terminate()
        reader.join()
        sampler.wait()


def halve_when_out_of_memory(folder: Path) -> Found:
    """A batch that the GPU has no room for is halved until it has: nothing is lost."""
    spec = HuggingFaceImageSpec(
        model=str(folder / "vit"), precision="bfloat16", batch_size=1_024,
        batch_pixels=1_024 * 224 * 224,
    )  # fmt: skip
    encoder = spec.load()
    draw = np.random.default_rng(0)
    payloads = draw.integers(0, 256, (1_024, 224, 224, 3), dtype=np.uint8)
    prepared = [
        Prepared(row=i, payload=encoder.prepare(image), size=224 * 224)
        for i, image in enumerate(payloads)
    ]
    whole = torch.cuda.get_device_properties(0).total_memory
    answers: dict[str, Mapping[int, np.ndarray]] = {}
    found = Found()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    for name, allowed in (("all of it", whole), ("1 GB", held + 10**9)):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(allowed / whole)
        counted = _Counted(encoder)
        into = Rows()
        encode_rows(prepared, spec=spec, encoder=counted, into=into)
        answers[name] = into.values
        first = answers["all of it"]
        least = min(
            float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in (
                (into.values[i].astype(np.float64), first[i].astype(np.float64)) for i in first
            )
        )
        found.rows.append([name, f"{len(into.values):,}", str(counted.calls), f"{least:.6f}"])
        found.targets.append(
            Target(what=f"rows embedded, {name}", limit=len(prepared), found=len(into.values),
                   at_least=True)
        )  # fmt: skip
    torch.cuda.set_per_process_memory_fraction(1.0)
    return found


class _Counted:
    """An encoder, and how often it was called."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.calls = 0
        self.dim = encoder.dim
        self.budget = encoder.budget  # type: ignore[attr-defined]

    def prepare(self, payload: Any) -> Any:
        return self._encoder.prepare(payload)

    def size(self, prepared: Any) -> int:
        return self._encoder.size(prepared)

    def encode(self, batch: list[Any]) -> Any:
        self.calls += 1
        return self._encoder.encode(batch)


if __name__ == "__main__":
    main()
