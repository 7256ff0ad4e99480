"""Encoders that end the process that works on certain rows, as native code with a fault does."""

import ctypes
import os
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from features.encoders import EncoderSpec


class KillerSpec(EncoderSpec):
    """Lengths of texts; some texts kill."""

    kind: ClassVar = "text"
    type: Literal["tests.features.killers.KillerSpec"] = "tests.features.killers.KillerSpec"

    def load(self):
        return Killer()


class StillbornSpec(EncoderSpec):
    """Lengths of texts; the first loads end the process, as where memory is short."""

    kind: ClassVar = "text"
    type: Literal["tests.features.killers.StillbornSpec"] = "tests.features.killers.StillbornSpec"
    log: str
    """File that gets a line for each load."""
    deaths: int
    """Loads that end the process."""

    def load(self):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        with open(self.log) as file:
            if len(file.readlines()) <= self.deaths:
                os.kill(os.getpid(), 9)
        return Killer()


class Killer:
    dim = 2

    def prepare(self, payload):
        if payload == "segfault":
            ctypes.string_at(0)
        if payload.startswith("once ") and not os.path.exists(payload.removeprefix("once ")):
            with open(payload.removeprefix("once "), "x"):
                ctypes.string_at(0)
        return payload

    def size(self, prepared):
        return len(prepared)

    def encode(self, batch):
        if "abort" in batch:
            os.abort()
        if "killed" in batch:
            os.kill(os.getpid(), 9)
        if "raises" in batch:
            raise RuntimeError("this one only raises")
        return np.array([[len(text), text.count("a")] for text in batch], np.float32)


class FaultySpec(EncoderSpec):
    """Lengths of texts; fails in its own code, where it is told to."""

    kind: ClassVar = "text"
    type: Literal["tests.features.killers.FaultySpec"] = "tests.features.killers.FaultySpec"
    where: Literal["load", "encode"]

    def load(self):
        if self.where == "load":
            Path("/nowhere/weights.bin").read_bytes()
        return Faulty()


class Faulty(Killer):
    def encode(self, batch):
        raise KeyError("oops")


class KindlessSpec(EncoderSpec):
    """Says not what it encodes."""

    type: Literal["tests.features.killers.KindlessSpec"] = "tests.features.killers.KindlessSpec"
