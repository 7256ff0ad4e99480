"""WAV files to log-mel features to embeddings, Parquet to Parquet, start-up excluded.

python -m benchmarks.audio [--quick] [--rows N] [--folder DIR]
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command, job
from benchmarks.measure import RATE_HEAD, in_turn, rate_rows, run_variant, short, tell
from benchmarks.media import FRAMES, RATE, save_ast, waves
from benchmarks.peers import Loop, bare_job, prepared_ahead
from benchmarks.processes import Share
from benchmarks.results import Target, report
from benchmarks.tables import write_pipeline, write_table

BATCH = 16
CLIPS = 64
"""Sounds for the comparison of the features alone."""


def best_loop(model_folder: str) -> Loop:
    """soundfile and Kaldi's log-mel in torch, a sound at a time and one batch ahead; bf16."""
    import soundfile
    import torch
    from transformers import ASTFeatureExtractor, ASTModel

    model = ASTModel.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
    extractor = ASTFeatureExtractor.from_pretrained(model_folder)
    filters = torch.tensor(extractor.mel_filters, dtype=torch.float32)
    window = torch.tensor(extractor.window, dtype=torch.float32)
    least = torch.tensor(1.192092955078125e-07)

    @torch.inference_mode()
    def features(data: bytes) -> Any:
        samples = torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])
        frames = (samples * 32768.0).unfold(0, 400, 160)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=-1)
        spectrum = torch.fft.rfft((frames - 0.97 * before) * window, 512)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = torch.log(torch.maximum(power @ filters, least))
        padded = torch.zeros(FRAMES, log_mel.shape[1])
        padded[: len(log_mel)] = log_mel[:FRAMES]
        return (padded - extractor.mean) / (extractor.std * 2)

    @torch.inference_mode()
    def loop(payloads: Sequence[bytes]) -> np.ndarray:
        found = []
        for sounds in prepared_ahead(payloads, prepare=features, batch=BATCH, threads=1):
            batch = torch.stack(sounds).to(torch.bfloat16)
            states = model(input_values=batch).last_hidden_state
            found.append(states[:, 2:].float().mean(dim=1).numpy())
        return np.concatenate(found)

    return loop


def compare_features(folder: Path) -> None:
    """The project's features beside the extractor's: seconds of each in turn, and how unlike."""
    import soundfile
    import torch
    from transformers import ASTFeatureExtractor, ASTModel

    from features.encoders.audio_models import audio_model

    torch.set_num_threads(2)
    place = folder / "model"
    extractor = ASTFeatureExtractor.from_pretrained(place)
    ours = audio_model(ASTModel.from_pretrained(place).eval(), extractor)
    sounds = [
        soundfile.read(io.BytesIO(data), dtype="float32")[0] for data in waves(CLIPS, seed=11)
    ]

    def own() -> np.ndarray:
        with torch.inference_mode():
            return ours.inputs(sounds)["input_values"].float().numpy()

    def theirs() -> np.ndarray:
        return extractor(sounds, sampling_rate=RATE, return_tensors="np")["input_values"]

    unlike = float(np.abs(own() - theirs()).max())
    seconds: dict[str, list[float]] = {"own": [], "theirs": []}
    for _ in range(15):
        for name, run in (("own", own), ("theirs", theirs)):
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    tell(unlike=unlike, **{name: float(np.median(found)) for name, found in seconds.items()})


VARIANTS: dict[str, Callable[[Path], None]] = {
    "best": lambda folder: bare_job(
        lambda: best_loop(str(folder / "model")), folder=folder, column="sound"
    ),
    "features": compare_features,
}


def main() -> None:
    options = command.parse(__doc__, rows=1_024, quick=128, variants=VARIANTS)
    folder = options.folder / str(options.rows)
    if not (folder / "table").exists():
        for first in range(0, options.rows, 128):
            write_table(folder, {"sound": waves(128, seed=first)}, first=first)
    model = save_ast(folder / "model")
    encoder = {"type": "huggingface_audio", "model": model, "precision": "bfloat16"}
    pipeline = write_pipeline(
        folder,
        features={"sound": {"column": "sound", "encoder": encoder}},
        shard_rows={"min": 128, "target": 256, "max": 512},
    )

    def best() -> Share:
        return run_variant("benchmarks.audio", "best", folder=folder)[1]

    found = in_turn(
        {
            "this project": (options.rows, functools.partial(job.working_share, pipeline)),
            "best loop": (options.rows, best),
        },
        repeats=options.repeats,
    )
    facts, _ = run_variant("benchmarks.audio", "features", folder=folder)
    ours, bare = found["this project"], found["best loop"]
    report(
        "audio",
        head=RATE_HEAD,
        rows=[
            *rate_rows(found, best=bare),
            *(
                [name, "", "", "", short(CLIPS / facts[key]), "", ""]
                for name, key in (
                    ("features alone, this project", "own"),
                    ("features alone, the extractor of transformers", "theirs"),
                )
            ),
        ],
        targets=[
            Target(
                what="of the best loop, by the clock",
                limit=0.85,
                found=ours.rate / bare.rate,
                at_least=True,
            ),
            Target(
                what="of the best loop, by CPU time",
                limit=0.85,
                found=ours.cpu_rate / bare.cpu_rate,
                at_least=True,
            ),
            Target(
                what="features: times the extractor of transformers, by CPU time",
                limit=5,
                found=facts["theirs"] / facts["own"],
                at_least=True,
            ),
            Target(
                what="features: greatest difference from its own", limit=1e-4, found=facts["unlike"]
            ),
        ],
        libraries=("soundfile",),
        remarks=[
            f"{options.rows:,} WAV files of 3 to 5 seconds in Parquet, AST of ViT-Ti's width with "
            f"random weights and {FRAMES} frames, bf16."
        ],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
