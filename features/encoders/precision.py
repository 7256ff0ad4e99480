"""In which types this machine computes at full speed."""

from __future__ import annotations

from typing import Any

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


def mend_convolutions(model: Any) -> None:
    """Have those 1-d convolutions computed in float32 that this machine gets wrong in bfloat16.

    oneDNN, by which torch 2.13 convolves on CPUs with AMX, gives noise for some grouped ones
    (16 channels in 2 groups, a kernel of 16: a Wav2Vec2's positions). Each is tried on noise, in
    both types; the input is brought to float32 for one that fails, and the output back.
    """
    import torch

    wrong = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Conv1d)
        and module.groups > 1
        and module.weight.dtype == torch.bfloat16
        and not _is_right(module)
    ]
    for module in wrong:
        module.float()
        module.register_forward_pre_hook(lambda _, inputs: tuple(one.float() for one in inputs))
        module.register_forward_hook(lambda _, __, output: output.bfloat16())


def _is_right(convolution: Any) -> bool:
    import torch

    draw = torch.Generator().manual_seed(0)
    length = convolution.kernel_size[0] * convolution.dilation[0] + 200
    noise = torch.randn(1, convolution.in_channels, length, generator=draw).bfloat16()
    with torch.inference_mode():
        found = convolution(noise).float()
        exact = torch.nn.functional.conv1d(
            noise.float(),
            convolution.weight.float(),
            None if convolution.bias is None else convolution.bias.float(),
            stride=convolution.stride,
            dilation=convolution.dilation,
            groups=convolution.groups,
            padding=convolution.padding,
        )
    return bool((found - exact).norm() < 0.05 * exact.norm())
