"""What a kernel was compiled for, as text: part of the key of everything found out about it.

And whether the device may be waited for at the moment.
"""

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


def recording() -> bool:
    """Whether a CUDA graph is being recorded: then nothing may wait for the device, nor be read back."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


__all__ = ["architecture", "recording"]
