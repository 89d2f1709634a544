"""The versions of one written tensor: what was written where, and what a slice holds now."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch.fx as fx

from tenfuse.capture.families import Box


@dataclasses.dataclass
class Storage:
    """A written tensor: its root, its versions, and what was written where."""

    root: fx.Node
    current: fx.Node
    initial: fx.Node
    count: int = 0
    log: list[tuple[Box, fx.Node | None, fx.Node]] = dataclasses.field(default_factory=list)
    """(where, what if it is a tensor of that very shape, version after) of every write."""
    exact: dict[Any, int] = dataclasses.field(default_factory=dict)
    bounds: np.ndarray | None = None

    def write(self, box: Box, value: fx.Node | None, version: fx.Node) -> None:
        rank = len(box.hull)
        if self.bounds is None:
            self.bounds = np.empty((16, rank, 2), dtype=np.int64)
        if self.count == len(self.bounds):
            self.bounds = np.concatenate([self.bounds, np.empty_like(self.bounds)])
        for d, side in enumerate(box.hull):
            self.bounds[self.count, d] = (-(2**62), 2**62) if side is None else side
        if box.cells is not None:
            self.exact[box] = self.count
        self.log.append((box, value, version))
        self.count += 1
        self.current = version

    def find(self, box: Box) -> tuple[fx.Node | None, fx.Node]:
        """(the value last written to exactly ``box``, else None; the version to read)."""
        if self.bounds is None:
            return None, self.initial
        probe = np.array([(-(2**62), 2**62) if s is None else s for s in box.hull], dtype=np.int64)
        from_ = self.exact.get(box, 0) if box.cells is not None else 0
        seen = self.bounds[from_ : self.count]
        if len(box.hull) == 0:
            last = self.count - 1
        else:
            hit = np.flatnonzero(((seen[:, :, 0] < probe[:, 1]) & (seen[:, :, 1] > probe[:, 0])).all(1))
            if not len(hit):
                return None, self.initial
            last = from_ + int(hit[-1])
        where, value, version = self.log[last]
        if value is not None and where == box and box.cells is not None:
            return value, version
        return None, version
