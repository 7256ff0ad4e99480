"""How candidates are trained: what all of a pipeline share."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from features.fingerprint import Execution, Spec
from training.memory import Memory
from training.spec import Positive, Share


class TrainingSpec(Spec):
    """How all candidates are trained."""

    workers: Annotated[int, Execution, pydantic.Field(ge=1)] = 1
    """Training workers, one CPU or GPU each. Results agree for any number, up to rounding."""
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 256
    """Rows of a batch, over all workers together."""
    shuffle_buffer: Annotated[int, pydantic.Field(ge=1)] = 262_144
    """Rows among which an epoch's order is drawn. Of a larger table whole shards are shuffled, and
    rows among so many neighbours, so that no more need be in memory at a time."""
    memory: Annotated[Memory, Execution] = 0.5
    """What embeddings may take on each machine: a share of its memory, or an amount (`8 GB`). If
    they take more, they are read as they are needed, in the same order."""
    max_epochs: Annotated[int, pydantic.Field(ge=1)] = 60
    """Passes over the training rows at most."""
    patience: Annotated[int, pydantic.Field(ge=1)] = 10
    """Epochs without a lower validation loss before a candidate stops; its best epoch is kept."""
    warmup: Share = 0.1
    """Share of all steps in which the learning rate rises; it falls as a cosine after them."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient; a longer one is scaled to it."""
    checkpoint_every: Annotated[int, Execution, pydantic.Field(ge=1)] = 5
    """Epochs between checkpoints, from which a killed worker or job resumes."""
    precision: Literal["float32"] = "float32"
    """Floating-point type of weights and computing."""
