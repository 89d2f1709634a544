"""One torch thread per worker, as the suite runs several side by side, and one seed per test.

Without a GPU, Triton's kernels run in its interpreter, which has to be said before anything
imports triton.  With one they are compiled: TRITON_INTERPRET=1 asks for the interpreter there.
"""

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def one_thread():
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_seed():
    """A test draws the same numbers alone, in the whole suite and in any order."""
    torch.manual_seed(0)
