"""Which number formats the hardware computes in."""

from pathlib import Path

import torch

from search_spaces.errors import InvalidInputError


def choose_precision(wanted: str, device: torch.device) -> str:
    """The precision to train in: ``fp32``, ``bf16`` or ``fp16``; ``auto`` takes bf16 where it is fast.

    Raises:
        InvalidInputError: The hardware does not compute in the wanted one.
    """
    if device.type == "cuda":
        has_bf16, has_fp16 = torch.cuda.is_bf16_supported(including_emulation=False), True
    else:
        has_bf16, has_fp16 = cpu_has_bf16(), False
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    if (wanted == "bf16" and not has_bf16) or (wanted == "fp16" and not has_fp16):
        raise InvalidInputError(f"{device.type} does not compute in {wanted} here; use --precision fp32 or auto")
    return wanted


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16 natively; elsewhere bf16 is emulated and far slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
