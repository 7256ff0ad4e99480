"""The index of a space: where its parts end, what is in them, and what cells miss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from features.shard import Embeddings, embedding_bytes, embedding_table
from features.storage import LocalStorage, open_storage
from features.store import Store
from training.models.alignment_spec import AlignmentSpec
from training.spec import InputSpec
from workflows.space import cells, nearest, parts
from workflows.space.nearest import Hits
from workflows.space.projecting import PartBuilder, Projection
from workflows.space.recall import recall


def written(
    store: Store, vectors: np.ndarray, *, name: str, keys: list[bytes] | None = None
) -> parts.Part:
    """A part of these vectors, and its cells."""
    part = parts.Part(name=name, space="s", first=0, over=())
    found = Embeddings(rows=np.arange(len(vectors)), values=vectors)
    layout = {"sensorium.layout": "contiguous"}
    table = embedding_table(
        found, keys=[bytes(16)] * len(vectors) if keys is None else keys, metadata=layout
    )
    store.storage.write_once(part.path, embedding_bytes(table))
    store.storage.write_once(part.cells_path, cells.Cells.of(vectors).to_bytes())
    return part


def test_boundaries_follow_the_embedding_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LEAST_ROWS", 1000)
    monkeypatch.setattr(parts, "MEAN_ROWS", 2000)
    monkeypatch.setattr(parts, "MOST_ROWS", 4000)
    over = [parts.Over(shards=(f"shard-{i}",), rows=100 + i % 7) for i in range(400)]

    def names(of: list[parts.Over]) -> set[tuple[parts.Over, ...]]:
        found = [tuple(of[start:stop]) for start, stop in parts._runs(of)]
        assert [one for run in found for one in run] == of
        sizes = [sum(one.rows for one in run) for run in found]
        assert max(sizes) <= 4000 and min(sizes[:-1]) >= 1000
        return set(found)

    before = names(over)
    assert 10 < len(before) < 40
    for place in (0, 150, 399):
        changed = [*over[:place], parts.Over(shards=("new",), rows=90), *over[place:]]
        assert len(names(changed) - before) <= 3


def test_recall_is_the_share_of_the_exact_neighbours() -> None:
    def hits(places: list[list[int]], near: float = 1.0) -> Hits:
        of = np.array(places)
        return Hits(similarities=np.full(of.shape, near), parts=of // 100, places=of % 100)

    exact = hits([[1, 2, 3, 4], [101, 102, 103, 104]])
    assert recall(exact, found=exact) == 1
    assert recall(exact, found=hits([[4, 1, 7, 8], [101, 2, 3, 4]])) == 3 / 8
    assert recall(exact, found=hits([[1, 2, 3, 4]] * 2, near=-np.inf)) == 0


def test_what_cells_miss_is_what_an_exact_search_finds_beside_them(
    storage_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, store = vectors[:50], Store(open_storage(storage_root))
    part, empty = written(store, vectors, name="p"), written(store, vectors[:0], name="none")

    model = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(vectors)
    expected = model.kneighbors(queries, return_distance=False)
    exact = nearest.search(store, [part, empty], queries=queries, k=10, by_cells=False)
    assert exact.places.tolist() == expected.tolist()
    shares = []
    for probes in (1, 8, cells.MOST_CELLS):
        monkeypatch.setattr(cells, "PROBES", probes)
        some = nearest.search(store, [part, empty], queries=queries, k=10, by_cells=True)
        naive = np.mean([len({*a} & {*b}) / 10 for a, b in zip(some.places.tolist(), expected)])
        assert recall(exact, found=some) == pytest.approx(naive)
        shares.append(naive)
    assert shares[0] < 0.6 < shares[1] < shares[2] == 1, "noise has no clusters"
    assert some.places.tolist() == expected.tolist()


@pytest.mark.parametrize("by_cells", [False, True])
def test_few_payloads_in_many_samples_are_each_found_once_by_few_reads(
    storage_root: str, by_cells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    payloads = rng.standard_normal((3, 16)).astype(np.float32)
    payloads /= np.linalg.norm(payloads, axis=1, keepdims=True)
    # The key's last byte is zero, as that of one key in 256 is.
    keys = [bytes([number]) + bytes(15) for number in range(3)]
    store, of_rows = Store(open_storage(storage_root)), rng.choice(3, 6000, p=[0.9, 0.09, 0.01])
    of_parts = [
        written(store, payloads[some], name=f"p{number}", keys=[keys[one] for one in some])
        for number, some in enumerate(np.split(of_rows, [4000]))
    ]
    reads, read_file = [], Store.read_file

    def counted(self: Store, path: str, read: object, **options: object) -> object:
        reads.append(path)
        return read_file(self, path, read, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read_file", counted)
    found = nearest.search_payloads(
        store, of_parts, query=payloads[0], k=10, by_cells=by_cells
    )  # fmt: skip
    expected = np.argsort(-(payloads @ payloads[0]), kind="stable").tolist()
    # Cells around so few points are mostly of the one, and not all of them are looked into.
    expected = expected[: len(found)] if by_cells else expected
    assert [near.key for near in found] == [keys[number] for number in expected] != []
    np.testing.assert_allclose(
        [near.similarity for near in found], (payloads @ payloads[0])[expected], atol=1e-6
    )
    first = [np.flatnonzero(of_rows == number)[0] for number in expected]
    counts = np.bincount(of_rows)[expected].tolist()
    if not by_cells:
        assert [near.part * 4000 + near.place for near in found] == first
        assert [near.samples for near in found] == counts
    # Its keys, and its vectors: of cells as often as is looked deeper.
    most = 1 + len({40, 320, 2560, nearest.MOST_BY_CELLS}) if by_cells else 2
    assert max(reads.count(part.path) for part in of_parts) <= most


def test_sequences_are_projected_step_by_step_as_the_model_takes_them(tmp_path: object) -> None:
    inputs = {"a": InputSpec(dim=4, sequence=True), "b": InputSpec(dim=3)}
    model = AlignmentSpec(dim=5, width=8).build(inputs=inputs, outputs=2).eval()
    builder = PartBuilder(
        Projection(
            store=LocalStorage(str(tmp_path)),
            record=None,
            weights=b"",
            modality="a",
            encoder="e",  # type: ignore[arg-type]
        )
    )
    builder._model = model  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    lengths = np.array([3, 1, 7, 2])
    values = rng.standard_normal((lengths.sum(), 4)).astype(np.float16)
    found = builder._vectors(Embeddings(rows=np.arange(4), values=values, lengths=lengths))
    ends = np.cumsum(lengths)
    with torch.inference_mode():
        alone = [
            model.embed(
                "a",
                x=torch.from_numpy(values[end - length : end].astype(np.float32))[None],
                present_B=torch.ones(1, dtype=torch.bool),
                mask_BT=torch.ones(1, length, dtype=torch.bool),
            )[0].numpy()
            for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
        ]
    np.testing.assert_allclose(found, np.stack(alone), atol=1e-6)
