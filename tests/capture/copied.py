"""Both ways of tracing a loop: every step, and a few of which the others are copies."""

import torch
import torch.fx as fx
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor

import tenfuse.backend  # noqa: F401  (makes the tracer go ahead)
from tenfuse import config
from tenfuse.capture import door
from tenfuse.capture.ahead import fastforward

T = 40


def traced(function, inputs, ahead, dynamic=False):
    """The graphs of ``function``, as lists of plain values, and how many steps were copied."""
    torch._dynamo.reset()
    fastforward._refused.clear()
    counters["tenfuse"].clear()
    graphs = []

    def backend(gm, example_inputs):
        graphs.append([plainly(m.graph) for m in gm.modules() if isinstance(m, fx.GraphModule)])
        return gm.forward

    marked = door.ours(backend, config.Options(fast_forward=ahead))
    result = torch.compile(function, backend=marked, dynamic=dynamic)(*inputs)
    return graphs, counters["tenfuse"]["forwarded"], result


def plainly(graph):
    place = {node: i for i, node in enumerate(graph.nodes)}
    memory = {}
    return [
        (node.op, str(node.target) if node.op != "placeholder" else "",
         fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{place[n]}"),
         shown(node.meta.get("example_value"), memory))
        for node in graph.nodes
    ]  # fmt: skip


def shown(value, memory):
    if isinstance(value, (tuple, list)):
        return [shown(v, memory) for v in value]
    if not isinstance(value, FakeTensor):
        return str(value)
    held = memory.setdefault(value.untyped_storage()._cdata, len(memory))
    sizes = str((tuple(value.shape), value.stride(), value.storage_offset()))
    return (sizes, value.dtype, value.device, value.requires_grad, held)


def same(function, *inputs, copied=None, dynamic=False):
    """Both ways of tracing make the same graphs and results; ``copied`` steps in one of them."""
    slow, none, wanted = traced(function, inputs, False, dynamic)
    fast, some, found = traced(function, inputs, True, dynamic)
    assert none == 0
    assert fast == slow
    torch.testing.assert_close(found, wanted)
    assert some == (T - 3 if copied is None else copied), "steps were copied"


def x(*sizes):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))
