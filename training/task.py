"""What is predicted: the task of a pipeline."""

from __future__ import annotations

from typing import Literal

from features.fingerprint import Spec


class TaskSpec(Spec):
    """What is predicted."""

    type: Literal["classification"] = "classification"
    """Kind of task: one class out of those that the labels name."""
    target: str
    """Column of labels (text, integers or booleans); a sample with null is unlabelled."""
