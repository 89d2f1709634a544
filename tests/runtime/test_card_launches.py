"""What Triton is handed for a card, up to the start of the kernel: ``fakecard`` checks every launch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from reference.steps import STEPS

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "fakecard.py"


def lines(tmp_path, *arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TENFUSE_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.splitlines()


def launches(tmp_path, *arguments):
    return [
        json.loads(line.removeprefix("LAUNCH"))
        for line in lines(tmp_path, *arguments)
        if line.startswith("LAUNCH")
    ]


def checked(found, name):
    """The kernel is started on what the launcher was given, and on as many instances."""
    assert found
    for one in found:
        assert one["step"] == name
        assert one["grid"] == one["asked"]["grid"] and one["arguments"] == one["asked"]["arguments"]
        assert any(one["asked"]["writes"]) and not all(one["asked"]["writes"])


@pytest.mark.parametrize("name", STEPS)
def test_what_is_launched(name, tmp_path):
    found = launches(tmp_path, name)
    checked(found, name)
    assert {one["size"] for one in found} == {"B2 T5 H1 d1", "B2 T9 H2 d16"}
    lengths = [kind for one in found for kind in one["kinds"][-2:]]
    assert set(lengths) == {"i32"}, "a length is no part of what is compiled"


def test_strides_of_64_bits(tmp_path):
    found = launches(tmp_path, "--far")
    checked(found, "gated")
    assert all("i64" in one["kinds"] for one in found)


def test_more_shared_memory_than_there_is(tmp_path):
    (line,) = [x for x in lines(tmp_path, "--full") if x.startswith("REFUSED")]
    assert "out of resource: shared memory" in line
