"""The whole job on texts, from a cold process to the last file, beside Daft and Ray's recipe.

    python -m benchmarks.whole_job [--quick] [--rows N] [--folder DIR] [--peers PYTHON]

`--peers` names a Python that can import daft besides all else: a virtual environment into which
`pip install --no-deps daft` was done, and that sees this project's packages by a .pth file.
"""

from __future__ import annotations

from benchmarks import command, job, text_peers
from benchmarks.measure import in_turn, run_variant, short
from benchmarks.peers import has_daft
from benchmarks.processes import Share
from benchmarks.results import Target, report
from benchmarks.tables import write_pipeline, write_text_table
from benchmarks.text_loops import minilm


def main() -> None:
    options = command.parse(
        __doc__, rows=8_000, quick=2_000, repeats=2, variants=text_peers.VARIANTS
    )
    folder = options.folder / str(options.rows)
    write_text_table(folder, rows=options.rows)
    encoder = {"type": "huggingface_text", "model": minilm(), "precision": "bfloat16"}
    pipeline = write_pipeline(folder, features={"text": {"column": "text", "encoder": encoder}})

    def project() -> Share:
        return job.embed(pipeline).share

    def peer(variant: str) -> Share:
        # From outside: what a peer says of when it was ready is no matter here.
        return run_variant(
            "benchmarks.whole_job", variant, folder=folder, python=options.peers, whole=True
        )[1]

    variants = {"this project": (options.rows, project)}
    variants["bare loop"] = (options.rows, lambda: peer("sorted-bf16"))
    if has_daft(options.peers):
        variants["Daft with the same loop"] = (options.rows, lambda: peer("daft"))
    variants["the recipe of Ray's documentation"] = (options.rows, lambda: peer("ray-recipe"))
    found = in_turn(variants, repeats=options.repeats)
    ours = found["this project"]
    targets = []
    for name, limit in (
        ("Daft with the same loop", 1.2),
        ("the recipe of Ray's documentation", 0.35),
    ):
        if name in found:
            for by, ratio in (
                ("by the clock", ours.seconds / found[name].seconds),
                ("by CPU time", found[name].cpu_rate / ours.cpu_rate),
            ):
                targets.append(Target(what=f"of {name}, {by}", limit=limit, found=ratio))
    report(
        "whole_job",
        head=("variant", "seconds", "least–most", "CPU s", "others' CPUs"),
        rows=[
            [
                name,
                short(series.seconds),
                series.seconds_spread,
                short(series.rows / series.cpu_rate),
                f"{series.foreign:.1f}",
            ]
            for name, series in found.items()
        ],
        targets=targets,
        libraries=("daft",),
        remarks=[
            f"{options.rows:,} texts, MiniLM in bf16 (Ray's recipe: as the library loads it)."
        ],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
