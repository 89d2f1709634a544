"""Instructions on a watched list that say nothing of how long it is, done without a look at its entries.

Takes the tracer before an instruction; leaves it behind that instruction, or as it was: a comprehension's
``LIST_APPEND``, ``outputs += [h]``, and ``if outputs:`` where the list holds something, as it then always
will: a list that has become shorter at the end of a step is no copy's.
"""

from __future__ import annotations

import opcode
from typing import Any

from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable

from tenfuse.capture.ahead.watched import Watched

_ADDS = next((number for number, (_, sign) in enumerate(getattr(opcode, "_nb_ops", ())) if sign == "+="), -1)
"""Of the operations of Python's ``BINARY_OP``, ``+=``; before Python 3.11 it is an instruction."""


def done(tx: Any) -> bool:
    """Whether the next instruction was one of these."""
    inst = tx.instructions[tx.instruction_pointer]
    if inst.opname == "LIST_APPEND" and type(tx.stack[-1 - inst.arg]) is Watched:
        entry = tx.pop()
        tx.stack[-inst.arg].append(tx, entry)
    elif (
        _adds(inst) and type(tx.stack[-2]) is Watched and type(tx.stack[-1]) in (ListVariable, TupleVariable)
    ):
        for entry in tx.pop().items:
            tx.stack[-1].append(tx, entry)
    elif _asks(inst) and type(tx.stack[-1]) is Watched and tx.stack[-1].holds():
        tx.stack[-1] = ConstantVariable.create(True)
        return False
    else:
        return False
    tx.instruction_pointer += 1
    return True


def _adds(inst: Any) -> bool:
    return inst.opname == "INPLACE_ADD" or (inst.opname == "BINARY_OP" and inst.arg == _ADDS)


def _asks(inst: Any) -> bool:
    """Whether an instruction takes a truth value from the stack."""
    jumps = inst.opname.startswith("POP_JUMP") and inst.opname.endswith(("_TRUE", "_FALSE"))
    return jumps or inst.opname in ("TO_BOOL", "UNARY_NOT")


__all__ = ["done"]
