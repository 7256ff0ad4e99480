"""What comes by the mailbox is what was posted, and its process imports nothing for it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from training.mailbox import Mailbox
from training.progress import FitProgress, RoundProgress, _post, received

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_posted_is_received() -> None:
    box = Mailbox()
    there = SimpleNamespace(post=SimpleNamespace(remote=box.post))
    round_ = RoundProgress(search=None, title="all", apart=[["a"], ["b", "c"]], groups=[["d"]])
    fit = FitProgress(
        candidate="a", number=1, of=4, epoch=2, max_epochs=9, validation_loss=0.5,
        validation_accuracy=None, done=False, failure=None, process=17,
    )  # fmt: skip
    end = dataclasses.replace(fit, done=True, failure="the loss is not finite")
    for item in (round_, fit, end):
        _post(there, item)
    assert [received(item) for item in box.take()] == [round_, fit, end]
    assert box.take() == []


def test_its_process_imports_nothing_but_the_standard_library() -> None:
    code = """
import sys
before = set(sys.modules)
import training.mailbox
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["training"]
