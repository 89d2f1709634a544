"""What surrounds the launches of a call reads no value of a tensor: a card is never waited for."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton.language")

from tenfuse.runtime import tiled
from tenfuse.runtime.tiles import TileLauncher, interpreting
from tests.tiles.loops import FORMS

pytestmark = [
    pytest.mark.skipif(not interpreting(), reason="TRITON_INTERPRET=1 runs kernels without a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.unique_dim,
}
FORM = {f.name: f for f in FORMS}


class Unread(TorchDispatchMode):
    """Raises where the host would have to know what is in a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in READS, func
        return func(*args, **(kwargs or {}))


def watched(monkeypatch, name, calls):
    real = getattr(tiled, name)

    def run(*args):
        calls.append(name)
        with Unread():
            return real(*args)

    monkeypatch.setattr(tiled, name, run)


@pytest.mark.parametrize("name", ["ema", "selective", "delta", "mixing", "rnn"])
def test_a_call_reads_no_value(name, monkeypatch):
    form, calls, launched = FORM[name], [], []
    watched(monkeypatch, "run_forward", calls)
    watched(monkeypatch, "run_backward", calls)
    # Kernels run on the card; in their place nothing is computed.
    monkeypatch.setattr(TileLauncher, "_launch", lambda self, *given: launched.append(self))
    inputs = [x.requires_grad_() for x in form.make(19, torch.float32)]
    options = {"strict": True, "inner": "eager", "target": "triton", "chunk": 8}
    model = torch.compile(form.loop, backend="tenfuse", options=options)
    out = model(*inputs)
    outs = [out] if isinstance(out, torch.Tensor) else [x for x in out if x.requires_grad]
    torch.autograd.grad(outs, inputs, [torch.ones_like(x) for x in outs], allow_unused=True)
    assert calls == ["run_forward", "run_backward"] and len(launched) >= 2


def test_reading_a_value_is_noticed():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Unread():
        torch.ones(3).sum().item()
