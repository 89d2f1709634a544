"""Numbers on the CPU beside tensors on a card; torch's meta device stands for the card here."""

import pytest
import torch

from tenfuse.plan.tensors import Examples
from tenfuse.reasons import Refused
from tenfuse.rewrite.launch import on_one_device


def tensor(*shape, device="meta"):
    return torch.empty(shape, device=device)


def test_numbers_follow_the_tensors():
    streams = [tensor(9, device="cpu"), tensor(9, 2)]
    given = Examples([tensor(2)], streams, [tensor(device="cpu")], [tensor(2)])
    found = on_one_device(given)
    assert {t.device.type for t in (*found.streams, *found.invariants)} == {"meta"}
    assert [t.shape for t in found.streams] == [(9,), (9, 2)] and found.streams[1] is given.streams[1]


def test_on_the_cpu_nothing_is_copied():
    given = Examples([tensor(2, device="cpu")], [], [tensor(device="cpu")], [])
    assert on_one_device(given) is given


@pytest.mark.parametrize("group", ["carries", "exports"])
def test_a_state_elsewhere_is_named(group):
    given = {"carries": [tensor(2)], "streams": [], "invariants": [], "exports": []}
    given[group] = [*given[group], tensor(device="cpu")]
    given["streams"] = [tensor(9, 2)]
    with pytest.raises(Refused, match="on cpu, and others on meta"):
        on_one_device(Examples(**given))
