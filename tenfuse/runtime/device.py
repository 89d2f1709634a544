"""What a kernel was compiled for, as text: part of the key of everything found out about it."""

from __future__ import annotations

import functools

import torch


@functools.cache
def architecture(device: torch.device) -> str:
    """The architecture of a device and the version of Triton."""
    import triton

    if device.type == "cpu" or triton.knobs.runtime.interpret:
        return f"the interpreter, Triton {triton.__version__}"
    found = torch.cuda.get_device_properties(device)
    name = getattr(found, "gcnArchName", "") if torch.version.hip else f"sm_{found.major}{found.minor}"
    return f"{name}, Triton {triton.__version__}"


__all__ = ["architecture"]
