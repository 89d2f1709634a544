"""Tests that need a card: skipped without one.

    make test-gpu                      on a machine with CUDA
    TENFUSE_GPU_DRY=1 make test-gpu    the same tests on the CPU, small, in Triton's interpreter

The rest of the suite runs kernels in the interpreter, which is chosen when Triton is imported:
these tests want a run of their own.
"""

import os
import sys

import pytest

DRY = os.environ.get("TENFUSE_GPU_DRY") == "1"
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"
elif any("gpu" in argument for argument in sys.argv[1:]):
    os.environ["TRITON_INTERPRET"] = "0"


def pytest_collection_modifyitems(items):
    import torch

    reason = ""
    if not DRY and not torch.cuda.is_available():
        reason = "needs a card"
    elif not DRY and os.environ.get("TRITON_INTERPRET", "0") != "0":
        reason = "Triton interprets in this run: `make test-gpu`"
    if reason:
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))
