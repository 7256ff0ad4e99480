"""How candidates are trained: what all of a pipeline share."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import pydantic

from features.fingerprint import Execution, Spec
from training.evaluation.metrics import ERRORS, metrics_of
from training.memory import Memory
from training.spec import Objective, Positive, Share
from training.task import TaskSpec

Precision = Literal["float32", "bfloat16", "float16"]
Count = Annotated[int, pydantic.Field(ge=1)]


class Monitored(NamedTuple):
    """What tells the best epoch of a candidate, or the best of several candidates."""

    name: str
    lower_is_better: bool


class TrainingSpec(Spec):
    """How all candidates are trained."""

    workers: Annotated[int, Execution, pydantic.Field(ge=1)] = 1
    """Training workers, one CPU or GPU each. Results agree for any number, up to rounding. Small
    candidates are fitted side by side, each by one of them; a large one takes them all."""
    batch_size: Count = 256
    """Rows of a batch, over all workers together."""
    shuffle_buffer: Annotated[int, pydantic.Field(ge=1)] = 262_144
    """Rows among which an epoch's order is drawn. Of a larger table whole shards are shuffled, and
    rows among so many neighbours, so that no more need be in memory at a time."""
    memory: Annotated[Memory, Execution] = 0.5
    """What embeddings may take on each machine: a share of its memory, or an amount (`8 GB`). If
    they take more, they are read as they are needed, in the same order."""
    accumulate: Annotated[int, Execution, pydantic.Field(ge=1)] = 1
    """Parts of a batch that are computed one after another, for a batch beyond the memory. The
    step is that of the whole batch. A loss of the model's own (an alignment's) is not divided."""
    max_epochs: Count = 60
    """Passes over the training rows at most."""
    patience: Count = 10
    """Epochs without a better `monitor` before a candidate stops; its best epoch is kept."""
    monitor: str = "loss"
    """What tells the best epoch: the validation loss, or a metric of the task over the validation
    rows. A candidate that has none but its loss (an alignment) goes by that."""
    mode: Literal["min", "max"] | None = None
    """Whether a lower or a higher `monitor` is better; by default as the metric says of itself,
    and lower for the loss."""
    warmup: Share = 0.1
    """Share of all steps in which the learning rate rises; it falls as a cosine after them."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient; a longer one is scaled to it."""
    ema: Share | None = None
    """Decay of a moving average of the weights, as 0.999; it is the average that is validated and
    kept. None is taken if it is not given."""
    calibration: Literal["temperature", "none"] = "temperature"
    """Whether probabilities are made to say how often they are right, by a temperature fitted to
    the validation rows. The order of a row's classes, and so the answer, stays as it is."""
    precision: Precision = "float32"
    """Type that matrices are multiplied in while training; weights and sums stay float32. With
    float16 the loss is scaled so that small gradients are not lost."""
    deterministic: Annotated[bool, Execution] = False
    """Whether to refuse operations whose result may differ from run to run on one machine."""
    compile: Annotated[bool, Execution] = False
    """Whether to compile models by `torch.compile`: it takes a minute a candidate, and pays for
    large ones. Needs a C++ compiler."""
    together: Annotated[int | None, Execution, pydantic.Field(ge=1)] = None
    """Most candidates of one architecture that are fitted in one pass; 1 fits each by itself. If
    it is not given, as many as pay on the machine."""
    checkpoint_every: Annotated[int, Execution, pydantic.Field(ge=1)] = 5
    """Epochs between checkpoints, from which a killed worker or job resumes."""
    checkpoint_steps: Annotated[int | None, Execution, pydantic.Field(ge=1)] = None
    """Steps between checkpoints within an epoch; none are made by their number by default."""
    checkpoint_minutes: Annotated[float | None, Execution, pydantic.Field(gt=0)] = 10.0
    """Minutes after which a checkpoint is made though neither of the above asks for one."""

    @property
    def lower_is_better(self) -> bool:
        """Whether the best `monitor` is the least."""
        return (self.mode or ("min" if self.monitor in {"loss", *ERRORS} else "max")) == "min"

    def monitored(self, objective: Objective) -> Monitored:
        """`monitor`, or the loss of a candidate that has a loss of its own."""
        if objective == "own":
            return Monitored("loss", lower_is_better=True)
        return Monitored(self.monitor, lower_is_better=self.lower_is_better)

    def ranking(self, objective: Objective, *, task: TaskSpec) -> Monitored:
        """What tells the best of candidates that differ in any of their fields.

        `monitor`; or of those with a loss of their own, which another temperature, width of the
        space or kind of loss makes another measure, a metric of the task: the one that `monitor`
        names, or else the first.
        """
        if objective == "task":
            return self.monitored(objective)
        metrics = metrics_of(task)
        if self.monitor in metrics:
            return Monitored(self.monitor, lower_is_better=self.lower_is_better)
        name, metric = next(iter(metrics.items()))
        return Monitored(name, lower_is_better=not metric.higher_is_better)
