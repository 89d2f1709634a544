"""The pytest plugin: the fixture ``assert_fused``.

Loaded by every pytest run where tenfuse is installed, so it imports torch only when the
fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_fused() -> Callable[..., Any]:
    """``assert_fused(model, *inputs, loops=None, form=None, kwargs=None)``: see ``testing.fused``."""
    from tenfuse.testing.fused import assert_fused as call

    return call
