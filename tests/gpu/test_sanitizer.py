"""No kernel reads or writes outside its tensors, or races with itself: compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpuharness import DRY

SCRIPT = Path(__file__).parent / "small.py"
TOOL = shutil.which("compute-sanitizer") or shutil.which(
    "compute-sanitizer", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
)


@pytest.mark.skipif(DRY or TOOL is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_sanitizer(tool):
    """Torch's allocator hands out parts of one block, between which nothing is checked: it is off."""
    command = [str(TOOL), "--tool", tool, "--error-exitcode", "9", sys.executable, str(SCRIPT)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.skipif(not DRY, reason="compute-sanitizer runs it")
def test_what_the_sanitizer_runs():
    done = subprocess.run([sys.executable, str(SCRIPT), "gated"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("ran") == 2, done.stderr[-4000:]
