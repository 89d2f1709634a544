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


NAMES = ("gated", "selective", "gla", "gated delta", "lstm")
TOOLS = ("memcheck", "racecheck", "initcheck")


@pytest.fixture(scope="session", params=NAMES)
def warm(request):
    """A loop whose kernels are compiled and tried: under the tools that would take minutes."""
    done = subprocess.run([sys.executable, str(SCRIPT), request.param], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param


@pytest.mark.skipif(DRY or TOOL is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", TOOLS)
def test_sanitizer(tool, warm):
    """Torch's allocator hands out parts of one block, between which nothing is checked: it is off."""
    command = [str(TOOL), "--tool", tool, "--error-exitcode", "9", sys.executable, str(SCRIPT), warm]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.skipif(not DRY, reason="compute-sanitizer runs it")
def test_what_the_sanitizer_runs():
    done = subprocess.run([sys.executable, str(SCRIPT), "gated"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("ran") == 2, done.stderr[-4000:]
