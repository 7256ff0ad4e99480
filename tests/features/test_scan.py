"""Scans that start from earlier ones: what they read, and that they find what a whole one finds."""

import os
import random

import pandas as pd
import pytest

from features.embedding import embed_shard
from features.encoders import HashingSpec, TableSpec
from features.modality_plan import _patches
from features.planning import make_plan
from features.sample_shards import write_samples
from features.scan_record import record_bytes, record_from
from features.snapshot import ModalityShards, Snapshot
from features.sources import RowReader, Source, SourceError, open_source
from features.spec import DatasetSpec, FeatureSpec, ShardSize, SplitSpec
from features.storage import LocalStorage
from features.store import Store

SIZE = ShardSize(min=10, target=30, max=90)


def rows(start, stop, **columns):
    numbers = range(start, stop)
    frame = {
        "id": [f"s{i}" for i in numbers],
        "text": [None if i % 7 == 0 else f"text {i % 500}" for i in numbers],
        "label": [i % 3 for i in numbers],
        "patient": [f"p{i // 4}" for i in numbers],
        "age": [float(20 + i % 60) for i in numbers],
        "split": [("train", "validation", "test")[i % 3] for i in numbers],
    }
    return pd.DataFrame(frame | columns)


class Table:
    """A table of several files, its store, and plans over it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "table").mkdir()
        self.store = Store(LocalStorage(folder / "store"))
        self.dataset = {"split": "split"}
        self.features = {"text": FeatureSpec(column="text", encoder=HashingSpec(dim=8))}
        self.files = []

    def put(self, name, frame):
        path = self.folder / "table" / f"{name}.parquet"
        frame.to_parquet(path, index=False, row_group_size=50)
        os.utime(path, ns=(random.randrange(10**18), random.randrange(10**18)))

    def plan(self, *, store=None, run=None, monkeypatch=None):
        source = open_source("table", folder=str(self.folder))
        return make_plan(
            name="table",
            source=source,
            dataset=DatasetSpec(path="table", id="id", shard_rows=SIZE, **self.dataset),
            features=self.features,
            target="label",
            store=store or self.store,
            run=run,
        )

    def keep(self, **options):
        plan = self.plan(**options)
        write_samples(plan, store=self.store)
        return plan

    def afresh(self):
        """A plan that knows nothing of any scan before."""
        return self.plan(store=Store(LocalStorage(self.folder / "nothing")))


@pytest.fixture
def table(tmp_path):
    made = Table(tmp_path)
    for number in range(6):
        made.put(f"{number:02}", rows(number * 200, number * 200 + 200))
    return made


@pytest.fixture
def read(monkeypatch):
    """Files that were read, by name, and of which columns."""
    found = []
    whole = Source.scan

    def scan(self, *, columns, files=None, **options):
        for chunk in whole(self, columns=columns, files=files, **options):
            found.append((os.path.basename(self.path_of(chunk.file))[:-8], tuple(columns)))
            yield chunk

    monkeypatch.setattr(Source, "scan", scan)
    return found


def facts(plan):
    return (plan.samples, plan.splits, plan.labelled, plan.repeats, plan.untrained)


def test_a_table_that_has_not_changed_is_not_read(table, read):
    first = table.keep()
    assert {name for name, _ in read} == {f"{n:02}" for n in range(6)}
    read.clear()
    second = table.plan()
    assert read == [] and second.record is None
    assert facts(second) == facts(first)


EDITS = {
    "a file more at the end": lambda t: t.put("99", rows(5000, 5200)),
    "a file more at the beginning": lambda t: t.put("000", rows(5000, 5117)),
    "a file more in the middle": lambda t: t.put("025", rows(5000, 5013)),
    "a file less": lambda t: (t.folder / "table" / "02.parquet").unlink(),
    "the first file less": lambda t: (t.folder / "table" / "00.parquet").unlink(),
    "the last file less": lambda t: (t.folder / "table" / "05.parquet").unlink(),
    "a row more": lambda t: t.put("03", pd.concat([rows(7000, 7001), rows(600, 800)])),
    "rows less": lambda t: t.put("03", rows(617, 800)),
    "a text changed": lambda t: t.put("03", rows(600, 800, text="other")),
    "a label changed": lambda t: t.put("01", rows(200, 400, label=1)),
    "a file emptied": lambda t: t.put("04", rows(0, 0)),
    "names changed about": lambda t: os.rename(
        t.folder / "table" / "05.parquet", t.folder / "table" / "001.parquet"
    ),
    "nothing but the time": lambda t: os.utime(t.folder / "table" / "02.parquet"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit_the_scan_is_what_a_whole_one_is(table, read, edit):
    table.keep()
    EDITS[edit](table)
    read.clear()
    plan = table.keep()
    again = [name for name, columns in read if len(columns) > 1]
    assert len(set(again)) <= 1, "one file has changed, and no other is read whole"
    assert facts(plan) == facts(table.afresh())
    assert plan.samples == table.plan().samples


def test_many_edits_one_after_another(table):
    draw = random.Random(7)
    following = 10_000
    for _ in range(25):
        names = sorted(path.stem for path in (table.folder / "table").iterdir())
        count = draw.choice([1, 3, 40, 130])
        match draw.choice(["add", "remove", "write"]):
            case "remove" if len(names) > 2:
                (table.folder / "table" / f"{draw.choice(names)}.parquet").unlink()
            case "write":
                table.put(draw.choice(names), rows(following, following + count))
            case _:
                table.put(f"{draw.random():.6f}", rows(following, following + count))
        following += count
        assert facts(table.keep()) == facts(table.afresh())


@pytest.mark.parametrize("known", [False, True])
def test_units_beside_one_another_find_what_one_scan_finds(table, monkeypatch, known):
    units = Source.units
    monkeypatch.setattr("features.scan_tasks.LEAST_UNITS", 2)
    monkeypatch.setattr(Source, "units", lambda self: units(self, least_bytes=1))
    if known:
        table.keep()
        table.put("01", rows(300, 400))
        table.put("03", rows(3000, 3100))
        table.put("04", rows(4000, 4200))
    calls = []

    def run(function, tasks):
        calls.append(len(tasks))
        return map(function, tasks)

    plan = table.plan(run=run)
    assert calls == [3 if known else 6]
    assert facts(plan) == facts(table.afresh())
    write_samples(plan, store=table.store, run=run)
    for shard in plan.samples:
        assert table.store.read_table(shard.path).num_rows == shard.rows
    assert facts(table.plan()) == facts(plan)


def test_an_id_in_a_changed_file_and_an_unchanged_one(table):
    table.keep()
    table.put("05", pd.concat([rows(1000, 1200), rows(3, 4)]))
    with pytest.raises(SourceError, match=r"ids must be unique, but 's3' in rows 3, 1200 "):
        table.plan()


def test_repeated_ids_are_named_with_their_rows(table):
    table.put("06", pd.concat([rows(n, n + 1) for n in (7, 7, 9, 11, 13, 15, 17)]))
    with pytest.raises(SourceError, match=r"'s7' in rows 7, 1200, 1201.*, and 1 more"):
        table.plan()


def test_an_empty_table_is_refused(tmp_path):
    table = Table(tmp_path)
    table.put("00", rows(0, 0))
    table.put("01", rows(0, 0))
    with pytest.raises(SourceError, match="has no rows"):
        table.plan()


def test_a_column_has_one_type_in_files_read_and_files_known(table):
    table.keep()
    table.put("06", rows(3000, 3010, text=[b"x"] * 10))
    with pytest.raises(SourceError, match=r"06\.parquet: column 'text' holds binary, and .*string"):
        table.plan()


def test_payloads_in_files_are_asked_for_each_time(table, read):
    for number in range(40):
        (table.folder / "table" / f"{number}.png").write_bytes(b"one")
    table.put("07", rows(9000, 9040).assign(text=[f"{n}.png" for n in range(40)]))
    table.features = {"text": FeatureSpec(column="text", uri=True, encoder=HashingSpec(dim=8))}
    before = table.keep()
    (table.folder / "table" / "3.png").write_bytes(b"other")
    read.clear()
    after = table.plan()
    assert len({name for name, _ in read}) == 7
    changed = {s.fingerprint for s in after.samples} - {s.fingerprint for s in before.samples}
    assert len(changed) == 1
    table.dataset["payload_key"] = "uri"
    table.keep()
    read.clear()
    table.plan()
    assert read == []


def test_a_record_of_another_version_is_passed_over(table):
    plan = table.keep()
    assert record_from(record_bytes(plan.record)) == plan.record
    assert record_from(b'{"scan": {}}') is None
    table.store.storage.replace("scans/table.json", b"{}")
    assert facts(table.plan()) == facts(plan)


def test_other_columns_are_another_scan(table, read):
    before = table.keep()
    table.dataset["slices"] = ("patient",)
    read.clear()
    after = table.plan()
    assert len({name for name, _ in read}) == 6
    assert after.samples != before.samples


@pytest.mark.parametrize("held", [None, 1000])
def test_repeats_are_what_pandas_finds(table, monkeypatch, held):
    if held:
        monkeypatch.setattr("features.spill.HELD_BYTES", held)
    table.dataset["split"] = SplitSpec(column="split", group="patient")
    found = table.plan().repeats
    frame = rows(0, 1200)
    for name, repeats in (("text", found["text"]), ("patient", found[""])):
        known = frame[frame[name].notna()]
        assert repeats.values == len(known)
        assert repeats.distinct == known[name].nunique()
        sides = known.groupby(name)["split"].agg(set)
        for pair in ("train/validation", "train/test", "validation/test"):
            assert repeats.divided[pair] == sum(set(pair.split("/")) <= s for s in sides)
        assert repeats.repeated == known[name].duplicated(keep=False).sum()
        by_id = known.set_index("id")
        for pair, examples in repeats.examples.items():
            assert len(set(examples)) == min(5, repeats.divided[pair])
            for samples in examples:
                two = by_id.loc[list(samples)]
                assert list(two["split"]) == pair.split("/") and two[name].nunique() == 1
        assert repeats.examples.keys() == repeats.divided.keys()


def test_one_payload_on_two_sides_is_found_however_far_apart(table):
    for number in range(6):
        start = number * 200
        texts = [f"{i}" for i in range(start, start + 200)]
        texts[7] = "0" if number == 5 else texts[7]
        table.put(f"{number:02}", rows(start, start + 200, text=texts))
    found = table.plan().repeats["text"]
    assert (found.repeated, found.divided) == (2, {"train/test": 1})
    assert found.examples == {"train/test": (("s0", "s1007"),)}


@pytest.mark.parametrize("kind", [str, int])
def test_classes_without_a_training_row_are_named_in_every_plan(table, read, kind):
    for number in range(6):
        frame = rows(number * 200, number * 200 + 200)
        frame["label"] = [kind(n % 4) for n in range(200)]
        table.put(f"{number:02}", frame)
    assert table.plan().untrained == ()
    assert frame["split"][:3].tolist() == ["validation", "test", "train"]
    frame["label"] = [kind(10 + n % 3) for n in range(200)]
    frame.loc[199, ["split", "label"]] = [None, kind(9)]
    table.put("05", frame)
    first = table.keep()
    assert first.untrained == (("10", "11", "9") if kind is str else ("9", "10", "11"))
    read.clear()
    assert table.plan().untrained == first.untrained and read == []
    table.put("02", rows(400, 600, label=kind(10)))
    assert table.plan().untrained == (("11", "9") if kind is str else ("9", "11"))
    assert facts(table.plan()) == facts(table.afresh())


def test_nothing_on_two_sides_is_no_leak(table):
    for number in range(6):
        start = number * 200
        texts = [f"{i}" for i in range(start, start + 200)]
        table.put(f"{number:02}", rows(start, start + 200, text=texts))
    repeats = table.plan().repeats["text"]
    assert (repeats.repeated, repeats.divided, repeats.examples) == (0, {}, {})


def test_strata_have_their_shares_and_groups_are_whole(table, read):
    table.dataset["split"] = SplitSpec(group="patient", stratify="label", validation=0.2, test=0.3)
    for number in range(6):  # patients of one label each, and of a rare one
        frame = rows(number * 200, number * 200 + 200)
        patients = frame["patient"].str[1:].astype(int)
        frame["label"] = (patients % 20 == 0).astype(int)
        table.put(f"{number:02}", frame)
    plan = table.keep()
    samples = pd.concat(
        table.store.read_table(shard.path).to_pandas() for shard in plan.samples
    ).rename(columns={"target.label": "label"})
    samples["patient"] = samples["sample_id"].str[1:].astype(int) // 4
    groups = samples.groupby("patient")[["split", "label"]].agg(set)
    assert (groups["split"].str.len() == 1).all()
    groups = groups.map(lambda values: next(iter(values)))
    for label, count in groups["label"].value_counts().items():
        shares = groups[groups["label"] == label]["split"].value_counts()
        assert shares["test"] == round(count * 0.3)
        assert shares["validation"] == round(count * 0.2)
    read.clear()
    assert facts(table.plan()) == facts(plan) and read == []
    read.clear()
    assert facts(table.afresh()) == facts(plan)


def test_a_group_of_two_strata_is_not_divided(table):
    table.dataset["split"] = SplitSpec(group="patient", stratify="label", validation=0.2, test=0.3)
    plan = table.keep()
    samples = pd.concat(table.store.read_table(s.path).to_pandas() for s in plan.samples)
    patients = samples["sample_id"].str[1:].astype(int) // 4
    assert (samples.groupby(patients)["split"].nunique() == 1).all()


def test_statistics_of_the_training_split_are_counted_once(table, read):
    table.features = {"age": FeatureSpec(columns=("age",), encoder=TableSpec(numeric=("age",)))}
    first = table.keep()
    read.clear()
    second = table.plan()
    assert read == []
    fingerprints = {p.modalities["age"].encoder_fingerprint for p in (first, second)}
    assert len(fingerprints) == 1
    table.put("05", rows(1000, 1200, age=90.0))
    assert table.plan().modalities["age"].encoder_fingerprint not in fingerprints


def test_payloads_in_files_are_asked_for_again_after_a_scan_in_units(table, monkeypatch):
    """Also those of shards that lie across two units."""
    units = Source.units
    monkeypatch.setattr("features.scan_tasks.LEAST_UNITS", 2)
    monkeypatch.setattr(Source, "units", lambda self: units(self, least_bytes=1))
    folder = table.folder / "table"
    for number in range(6):
        (folder / f"{number:02}.parquet").unlink()
    for number in range(40):
        names = [f"{number}-{n}.txt" for n in range(8)]
        for name in names:
            (folder / name).write_text("one")
        table.put(f"{number:02}", rows(number * 8, number * 8 + 8, text=names))
    table.features = {"text": FeatureSpec(column="text", uri=True, encoder=HashingSpec(dim=8))}
    plan = table.keep(run=map)
    assert all(found.in_files for found in plan.record.scan.shards)
    for path in folder.glob("*.txt"):
        path.write_text("another")
    assert facts(table.plan()) == facts(table.afresh())


def test_a_column_may_change_its_type_in_the_whole_table(table):
    table.keep()
    for number in range(6):
        frame = rows(number * 200, number * 200 + 200)
        table.put(f"{number:02}", frame.assign(label=[f"c{n % 3}" for n in range(200)]))
    assert facts(table.plan()) == facts(table.afresh())


def test_a_group_is_one_whether_its_number_is_whole_or_a_float(table):
    """As pandas has integers beside a null, of which Arrow writes large ones with an exponent."""
    table.dataset["split"] = SplitSpec(column="split", group="patient")
    for number in range(6):
        (table.folder / "table" / f"{number:02}.parquet").unlink()
    whole = [12345678901 + n % 50 for n in range(200)]
    table.put("00", rows(0, 200, patient=whole, split="train"))
    table.put("01", rows(200, 400, patient=[None, *map(float, whole[1:])], split="train"))
    found = table.keep().repeats[""]
    assert (found.values, found.distinct) == (399, 50)
    assert table.plan().record is None


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_labels_in_the_first_rows_alone(tmp_path, suffix):
    """A shard without any is what it is, read alone or beside others; so after rows are added."""
    table = Table(tmp_path)
    frame = rows(0, 4000)
    frame["label"] = [n % 3 if n < 500 else None for n in range(4000)]
    frame["label"] = frame["label"].astype("Int64")
    path = tmp_path / "table" / f"00.{suffix}"

    def write(some):
        if suffix == "csv":
            some.to_csv(path, index=False)
        else:
            some.to_json(path, orient="records", lines=True)

    write(frame)
    before = table.keep()
    write(pd.concat([frame, rows(4000, 4100).assign(label=None)]))
    after = table.keep()
    kept = {s.fingerprint for s in before.samples} & {s.fingerprint for s in after.samples}
    assert len(kept) >= len(before.samples) - 1
    assert facts(after) == facts(table.afresh())


def test_a_field_of_a_record_may_be_a_slice_and_a_stratum(tmp_path):
    """In CSV, where what is text to one may be a number to the other."""
    table = Table(tmp_path)
    rows(0, 300).to_csv(tmp_path / "table" / "00.csv", index=False)
    table.dataset = {
        "slices": ("age",),
        "split": SplitSpec(group="patient", stratify="label", validation=0.2, test=0.2),
    }
    encoder = TableSpec(numeric=("age", "label"))
    table.features = {"age": FeatureSpec(columns=("age", "label"), encoder=encoder)}
    plan = table.keep()
    spec = plan.modalities["age"].feature.encoder
    columns = table.features["age"].payload_columns
    for work in plan.work:
        result = embed_shard(
            work,
            store=table.store,
            spec=spec,
            encoder=spec.load(),
            source=plan.source,
            reader=RowReader(plan.source, columns=columns.names, text=columns.text_names),
            columns=columns,
            payload_key_by="stat",
        )
        assert result.bad == 0 and result.embedded == work.rows


def test_the_longest_list_of_patches_is_the_newest():
    def donor(*over):
        part = ModalityShards(
            kind="text", encoder={}, encoder_fingerprint="e", dim=1, shards=(over,), present=1,
            missing=0, bad=0,
        )  # fmt: skip
        return Snapshot(name="t", target=None, slices=(), samples=(), modalities={"text": part})

    for donors in ([donor("s", "p"), donor("s", "p", "q")], [donor("s", "p", "q"), donor("s")]):
        assert _patches(donors, modality="text", encoder="e") == {"s": ("p", "q")}
