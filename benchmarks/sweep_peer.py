"""Ludwig's side of the sweep: the same candidates by its own API, in the Python that has it.

Nothing of the project's libraries is imported here: the Python that runs this has Ludwig's.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.measure import tell


def fit_all(folder: Path) -> None:
    """Fit the candidates one after another; keep which test rows each answers rightly `[16, N]`.

    The table is put into Ludwig's form once, for all. What a run may write is left out but the
    weights of the best epoch, which Ludwig goes back to at its end.
    """
    _name_missing_operators()
    import logging

    import numpy as np
    import pandas as pd
    from ludwig.api import LudwigModel

    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    table = pd.read_parquet(folder / "text.parquet")
    parts = {name: part.reset_index(drop=True) for name, part in table.groupby("split")}
    made = folder / "ludwig"
    shutil.rmtree(made, ignore_errors=True)

    def model(candidate: Mapping[str, Any]) -> LudwigModel:
        config = config_of(candidate, sweep=sweep)
        return LudwigModel(config, logging_level=logging.ERROR, backend="local")

    data = model(sweep["candidates"][0]).preprocess(
        training_set=parts["train"],
        validation_set=parts["validation"],
        test_set=parts["test"],
        skip_save_processed_input=True,
    )
    begun, right, labels = time.time(), [], parts["test"]["label"].to_numpy()
    for candidate in sweep["candidates"]:
        fitted = model(candidate)
        fitted.train(
            training_set=data.training_set,
            validation_set=data.validation_set,
            training_set_metadata=data.training_set_metadata,
            random_seed=candidate["seed"],
            output_directory=str(made),
            skip_save_training_description=True,
            skip_save_training_statistics=True,
            skip_save_progress=True,
            skip_save_log=True,
            skip_save_processed_input=True,
        )
        _, answers, _ = fitted.evaluate(
            dataset=data.test_set, batch_size=sweep["evaluation_batch_size"],
            collect_predictions=True,
        )  # fmt: skip
        right.append(answers["label_predictions"].to_numpy() == labels)
    np.save(folder / "ludwig-right.npy", np.stack(right))
    tell(
        fit_seconds=time.time() - begun,
        versions={name: version(name) for name in ("ludwig", "torch")},
    )


def config_of(candidate: Mapping[str, Any], *, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Late fusion in Ludwig's words.

    A hidden layer a modality, and one linear layer over all of them: the sum of what each says of
    the classes.
    """
    encoder = {
        "type": "dense",
        "num_layers": 1,
        "output_size": sweep["width"],
        "norm": "layer",
        "activation": "relu",  # it has no GELU
        "dropout": candidate["dropout"],
    }
    warmup = sweep["warmup"]
    return {
        "input_features": [
            {"name": name, "type": "vector", "encoder": encoder} for name in sweep["modalities"]
        ],
        "combiner": {"type": "concat", "num_fc_layers": 0},
        "output_features": [{"name": "label", "type": "category"}],
        "trainer": {
            "epochs": sweep["epochs"],
            "batch_size": sweep["batch_size"],
            "eval_batch_size": sweep["evaluation_batch_size"],
            "early_stop": -1,
            "learning_rate": candidate["learning_rate"],
            "learning_rate_scheduler": {
                "decay": "cosine",
                "warmup_fraction": warmup,
                # The steps after the warm-up: by default the cosine starts anew each epoch.
                "t_0": 1 + round((1 - warmup) * sweep["steps"]),
            },
            "optimizer": {"type": "adamw", "weight_decay": sweep["weight_decay"]},
            "gradient_clipping": {"clipglobalnorm": sweep["gradient_clip"]},
            "regularization_lambda": 0.0,
            "validation_field": "label",
            "validation_metric": "loss",
        },
    }


def _name_missing_operators() -> None:
    """Let torchvision be imported without its compiled part.

    The registry's wheels of torchvision are built for CUDA and do not load beside a torch for
    CPUs; at its import, which Ludwig needs for images alone, two operators must be known by name.
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_operators"] = library  # what a library defines goes with it


if __name__ == "__main__":
    command.parse(__doc__, rows=1, quick=1, variants={"ludwig": fit_all})
