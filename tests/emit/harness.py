"""Run a hand-made program through the C++ kernel and through the interpreter."""

from __future__ import annotations

import torch

from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.runtime.launch import DTYPES, Launcher
from tenfuse.step import interpret

GUARD = 24


def guarded(shape, dtype, perm=None):
    """A tensor of NaN inside a NaN red zone, and a check that the zone is untouched."""
    count = 1
    for n in shape:
        count *= n
    fill = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
    inner = fill[GUARD : GUARD + count]
    if perm is None:
        view = inner.view(shape)
    else:
        view = inner.view([shape[p] for p in perm]).permute([perm.index(d) for d in range(len(shape))])
    return view, lambda: bool(torch.isnan(fill[:GUARD]).all() and torch.isnan(fill[GUARD + count :]).all())


def laid_out(shape, dtype, style, gen):
    """Random values, laid out contiguously, with dimensions reversed, or with gaps."""
    made = torch.randn(shape, generator=gen, dtype=torch.float64).mul(0.5).to(dtype)
    if style == "reversed":
        return made.permute(*range(made.dim())[::-1]).contiguous().permute(*range(made.dim())[::-1])
    if style == "gaps" and made.dim():
        wide = torch.full([2 * n + 1 for n in shape], 7.0, dtype=dtype)
        part = wide[tuple(slice(1, 2 * n + 1, 2) for n in shape)]
        return part.copy_(made)
    if style == "expanded" and made.dim() > 1:
        return made[:, :1].expand(shape)
    return made


def names(program, kind):
    return program.inputs(kind)


def forward(
    program,
    T,
    dtype="f32",
    compute="f32",
    style="plain",
    reverse=False,
    checkpoint=0,
    seed=0,
    sizes=None,
    bools=(),
    special=None,
):
    """The kernel's results, the interpreter's in fp64 on the same inputs, and the kernel's inputs."""
    gen = torch.Generator().manual_seed(seed)
    size = {**program.sizes, **(sizes or {})}
    dt, ct = DTYPES[dtype], DTYPES[compute]
    operands, tensors, checks = [], [], []
    unit = style in ("plain", "expanded")

    def add(role, index, axes, tensor, kind, lead):
        last = axes[-1] if axes and tensor.stride(-1) == 1 and unit else None
        operands.append(Operand(role, index, kind, axes, last))
        tensors.append(tensor)
        del lead

    def shape(axes):
        return [size[a] for a in axes]

    inits = [laid_out(shape(c.axes), ct, style, gen) for c in program.carries]
    for i, c in enumerate(program.carries):
        add("init", i, c.axes, inits[i], compute, 0)
    xs = {}
    for i, axes in program.inputs("stream").items():
        x = laid_out([T, *shape(axes)], dt, style, gen)
        if i in bools:
            x = x > 0
        if special:
            special(i, x)
        xs[i] = x
        add("stream", i, axes, x, "bool" if i in bools else dtype, 1)
    invariants = {}
    for i, axes in program.inputs("invariant").items():
        v = laid_out(shape(axes), dt, style if style != "expanded" else "plain", gen)
        v = v * (1.0 / max(1, shape(axes)[0])) ** 0.5 if len(axes) > 1 else v
        invariants[i] = v
        operands.append(Operand("constant", i, dtype, axes, axes[-1] if v.stride(-1) == 1 and unit else None))
        tensors.append(v)
    finals, outs, saves = [], [], []
    for i, c in enumerate(program.carries):
        f, ok = guarded(shape(c.axes), ct)
        finals.append(f)
        checks.append(ok)
        add("final", i, c.axes, f, compute, 0)
    for i, o in enumerate(program.outs):
        full = shape(o.axes) if o.accumulate else [T, *shape(o.axes)]
        perm = None if style != "reversed" else list(range(len(full)))[::-1]
        y, ok = guarded(full, ct if o.accumulate else dt, perm)
        outs.append(y)
        checks.append(ok)
        add("out", i, o.axes, y, compute if o.accumulate else dtype, 0)
    if checkpoint:
        for i, c in enumerate(program.carries):
            s, ok = guarded([-(-T // checkpoint), *shape(c.axes)], ct)
            saves.append(s)
            checks.append(ok)
            add("save", i, c.axes, s, compute, 1)
    kernel = Kernel(program, tuple(operands), compute, reverse, checkpoint)
    Launcher(kernel)(tensors, T, {a: size[a] for a in program.dynamic})
    assert all(ok() for ok in checks), "a red zone was written"
    if sizes:
        import dataclasses

        program = dataclasses.replace(program, sizes=size)
    want = interpret.scan(program, inits, xs, invariants, T, reverse)
    return (finals, outs, saves), want, (inits, xs, invariants)


def backward(forward_program, adjoint, T, chunk, compute="f32", reverse=False, seed=0, extra=()):
    """Adjoint kernel against autograd of the interpreter in fp64.

    The adjoint's outputs are gradients of ``extra``, given as ("stream", i) or
    ("invariant", i); its streams past the forward's are the gradients of the outputs.
    """
    gen = torch.Generator().manual_seed(seed)
    ct = DTYPES[compute]
    (_, _, saves), _, (inits, xs, invariants) = forward(
        forward_program, T, compute, compute, reverse=reverse, checkpoint=chunk, seed=seed
    )
    size = forward_program.sizes
    seeds = [
        torch.randn([T, *[size[a] for a in o.axes]], generator=gen, dtype=torch.float64)
        for o in forward_program.outs
    ]
    last = [
        torch.randn([size[a] for a in c.axes], generator=gen, dtype=torch.float64)
        for c in forward_program.carries
    ]
    leaves = {("carry", i): t.double().requires_grad_() for i, t in enumerate(inits)}
    leaves |= {("stream", i): t.double().requires_grad_() for i, t in xs.items()}
    leaves |= {("invariant", i): t.double().requires_grad_() for i, t in invariants.items()}
    got = interpret.scan(
        forward_program,
        [leaves["carry", i] for i in range(len(inits))],
        {i: leaves["stream", i] for i in xs},
        {i: leaves["invariant", i] for i in invariants},
        T,
        reverse,
    )
    loss = sum((a * b).sum() for a, b in zip(got[0] + got[1], last + seeds, strict=True))
    grads = dict(
        zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True)
    )

    operands, tensors, checks = [], [], []

    def add(role, index, axes, tensor):
        operands.append(Operand(role, index, compute, axes, axes[-1] if axes else None))
        tensors.append(tensor)

    for i, c in enumerate(adjoint.carries):
        add("init", i, c.axes, last[i].to(ct))
    streams = {**xs, **{len(xs) + i: s.to(ct) for i, s in enumerate(seeds)}}
    axes = {**forward_program.inputs("stream"), **adjoint.inputs("stream")}
    for i, x in streams.items():
        if i in axes:
            add("stream", i, axes[i], x)
    for i, v in invariants.items():
        add("constant", i, forward_program.inputs("invariant")[i], v)
    for i, c in enumerate(forward_program.carries):
        add("save", i, c.axes, saves[i])
    results = []
    for i, c in enumerate(adjoint.carries):
        y, ok = guarded([size[a] for a in c.axes], ct)
        add("final", i, c.axes, y)
        results.append((y, grads["carry", i]))
        checks.append(ok)
    for (i, o), leaf in zip(enumerate(adjoint.outs), extra, strict=True):
        shape = [size[a] for a in o.axes]
        y, ok = guarded(shape if o.accumulate else [T, *shape], ct)
        add("out", i, o.axes, y)
        want = grads[leaf]
        if o.accumulate and y.dim() > want.dim():
            y = y.unsqueeze(0)
            results.append((y, want))
        else:
            results.append((y, want))
        checks.append(ok)
    import dataclasses

    recompute = dataclasses.replace(forward_program, outs=())
    Launcher(Kernel(adjoint, tuple(operands), compute, reverse, chunk, recompute))(tensors, T)
    assert all(ok() for ok in checks), "a red zone was written"
    return [((y.sum((0, 1)) if y.dim() > w.dim() and y.shape[0] == 1 else y), w) for y, w in results]
