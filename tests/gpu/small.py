"""A few loops, forward and backward, once: what ``compute-sanitizer`` runs.

compute-sanitizer --tool memcheck python tests/gpu/small.py
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import torch  # noqa: E402
from gpuharness import STEPS, Size, compiled, made, results  # noqa: E402


def main() -> None:
    for name in sys.argv[1:] or ("gated", "gated delta", "lstm"):
        step = STEPS[name]
        for dtype in (torch.float32, torch.bfloat16):
            inputs = made(step, Size(2, 67, 2, 24), dtype)
            found = results(compiled(step, inputs=inputs), inputs)
            assert all(bool(x.isfinite().all()) for x in found.values())
            print(name, dtype, "ran")


if __name__ == "__main__":
    main()
