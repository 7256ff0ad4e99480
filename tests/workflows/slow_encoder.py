"""An encoder for the tests of interruption: real, but slow enough to be interrupted."""

import hashlib
import time
from typing import ClassVar

import numpy as np

from features.encoders import EncoderSpec


class SlowSpec(EncoderSpec):
    """Eight numbers from a text's hash, after a wait."""

    kind: ClassVar = "text"
    seconds: float = 0.0

    def load(self):
        return Slow(self.seconds)


class Slow:
    dim = 8

    def __init__(self, seconds):
        self.seconds = seconds

    def prepare(self, payload):
        return payload

    def size(self, prepared):
        return len(prepared)

    def encode(self, batch):
        time.sleep(self.seconds)
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in batch]
        return np.array([list(digest) for digest in digests], dtype=np.float32)
