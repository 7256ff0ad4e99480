"""In which types this machine computes at full speed."""

from __future__ import annotations

BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""What a CPU has that multiplies bfloat16 itself, as torch names it: x86-64, then ARM."""


def imitates_bfloat16() -> bool:
    """Whether models run on this machine's CPU, and it computes bfloat16 by way of float32.

    Then float32 is faster: about five times for MiniLM on a CPU with AVX2.
    """
    import torch

    if torch.cuda.is_available():
        return False
    found = torch.cpu.get_capabilities()
    return not any(found.get(name) for name in BFLOAT16)
