"""Backward kernels of the derived adjoint, and their gradients put together."""

from __future__ import annotations

import dataclasses

import torch
from harness import forward, guarded

from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.runtime.launch import DTYPES, Launcher
from tenfuse.step import interpret
from tenfuse.step.adjoint import Summed, adjoint
from tenfuse.step.program import prune


def reference(program, inits, xs, invariants, steps, reverse, last, seeds):
    """Gradients by autograd through the interpreter in fp64."""
    leaves = {("carry", i): t.double().requires_grad_() for i, t in enumerate(inits)}
    leaves |= {("stream", i): t.double().requires_grad_() for i, t in xs.items() if t.dtype != torch.bool}
    leaves |= {("invariant", i): t.double().requires_grad_() for i, t in invariants.items()}
    values = {i: leaves.get(("stream", i), x) for i, x in xs.items()}
    finals, ys = interpret.scan(
        program,
        [leaves["carry", i] for i in range(len(inits))],
        values,
        {i: leaves["invariant", i] for i in invariants},
        steps,
        reverse,
    )
    loss = sum((a * b).sum() for a, b in zip(finals + ys, last + seeds, strict=True))
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(leaves.items(), grads, strict=True)
    }


def summed(term, outs, program, axes):
    """One term of an invariant's gradient from the adjoint's outputs."""
    if isinstance(term, Summed):
        value, own = outs[term.out], program.outs[term.out].axes
        gone = [i for i, a in enumerate(own) if a not in axes]
        value = value.sum(gone) if gone else value
        own = tuple(a for a in own if a in axes)
        return interpret.aligned((value, own), axes)
    letters = {a: chr(ord("a") + i) for i, a in enumerate(program.sizes)}
    sides = [program.outs[i].axes for i in (term.left, term.right)]
    text = ",".join("Z" + "".join(letters[a] for a in s) for s in sides)
    return torch.einsum(f"{text}->{''.join(letters[a] for a in axes)}", outs[term.left], outs[term.right])


def derived(program, steps, chunk, compute="f32", reverse=False, seed=0, bools=()):
    """``(name, kernel's gradient, autograd's)`` for every carry, stream and invariant."""
    dtype = DTYPES[compute]
    (_, _, saves), _, (inits, xs, invariants) = forward(
        program, steps, compute, compute, reverse=reverse, checkpoint=chunk, seed=seed, bools=bools
    )
    gen = torch.Generator().manual_seed(seed + 1)
    size = program.sizes
    seeds = [
        torch.randn([steps, *[size[a] for a in o.axes]], generator=gen, dtype=torch.float64)
        for o in program.outs
    ]
    last = [
        torch.randn([size[a] for a in c.axes], generator=gen, dtype=torch.float64) for c in program.carries
    ]
    wanted = reference(program, inits, xs, invariants, steps, reverse, last, seeds)
    floats = [i for i in xs if i not in bools]
    back = adjoint(program, floats, list(invariants))
    kernel, tensors, finals, outs, checks = _kernel(
        program,
        back,
        steps,
        chunk,
        compute,
        reverse,
        inits,
        xs,
        invariants,
        saves,
        [t.to(dtype) for t in last],
        [t.to(dtype) for t in seeds],
        bools,
    )
    Launcher(kernel)(tensors, steps)
    assert all(ok() for ok in checks), "a red zone was written"
    found = [(f"carry {i}", finals[i], wanted["carry", i]) for i in range(len(inits))]
    found += [(f"stream {i}", outs[o], wanted["stream", i]) for i, o in back.streams.items()]
    for i, terms in back.invariants.items():
        got = sum(summed(t, outs, back.program, back.axes[i]) for t in terms) if terms else None
        want = wanted["invariant", i]
        found.append((f"invariant {i}", torch.zeros_like(want) if got is None else got, want))
    return found


def _kernel(program, back, steps, chunk, compute, reverse, inits, xs, invariants, saves, last, seeds, bools):
    size, dtype = {**program.sizes, **back.program.sizes}, DTYPES[compute]
    operands, tensors, checks = [], [], []

    def add(role, index, axes, tensor, kind=compute):
        operands.append(Operand(role, index, kind, tuple(axes), axes[-1] if axes else None))
        tensors.append(tensor)

    recompute = prune(dataclasses.replace(program, outs=())) if back.needs_states else None
    for i, c in enumerate(back.program.carries):
        add("init", i, c.axes, last[i])
    streams = {**xs, **{len(program.inputs("stream")) + i: s for i, s in enumerate(seeds)}}
    read = {**(recompute.inputs("stream") if recompute else {}), **back.program.inputs("stream")}
    for i, axes in read.items():
        add("stream", i, axes, streams[i], "bool" if i in bools else compute)
    read = {**(recompute.inputs("invariant") if recompute else {}), **back.program.inputs("invariant")}
    for i, axes in read.items():
        add("constant", i, axes, invariants[i])
    finals, outs = [], []
    for i, c in enumerate(back.program.carries):
        y, ok = guarded([size[a] for a in c.axes], dtype)
        add("final", i, c.next_axes, y)
        finals.append(y)
        checks.append(ok)
    for i, o in enumerate(back.program.outs):
        shape = [size[a] for a in o.axes]
        y, ok = guarded(shape if o.accumulate else [steps, *shape], dtype)
        add("out", i, o.axes, y)
        outs.append(y)
        checks.append(ok)
    if recompute is not None:
        for i, c in enumerate(program.carries):
            add("save", i, c.axes, saves[i])
        return (
            Kernel(back.program, tuple(operands), compute, reverse, chunk, recompute),
            tensors,
            finals,
            outs,
            checks,
        )
    return Kernel(back.program, tuple(operands), compute, not reverse), tensors, finals, outs, checks
