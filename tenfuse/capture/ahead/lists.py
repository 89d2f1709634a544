"""Instructions on lists that the tracer would settle by a number of the step, or by how long a list is.

Takes the tracer before an instruction; leaves it behind that instruction, or as it was: ``rows[t]`` and
``rows[t] = h``; a comprehension's ``LIST_APPEND`` and ``rows += [h]``; and ``if rows:`` where the list holds
something, as it then always will (a list that has become shorter at the end of a step is no copy's).
"""

from __future__ import annotations

import opcode
from typing import Any

from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable

from tenfuse.capture.ahead.taken import Taken
from tenfuse.capture.ahead.watched import Watched, is_stand_in

_ADDS = next((number for number, (_, sign) in enumerate(getattr(opcode, "_nb_ops", ())) if sign == "+="), -1)
"""Of the operations of Python's ``BINARY_OP``, ``+=``; before Python 3.11 it is an instruction."""


def done(tx: Any, taken: Taken) -> bool:
    """Whether the next instruction was one of these."""
    inst = tx.instructions[tx.instruction_pointer]
    if _asks(inst) and type(tx.stack[-1]) is Watched and tx.stack[-1].length():
        tx.stack[-1] = ConstantVariable.create(True)
        return False
    if _appended(tx, inst) or _read(tx, inst, taken) or _written(tx, inst, taken):
        tx.instruction_pointer += 1
        return True
    return False


def _appended(tx: Any, inst: Any) -> bool:
    if inst.opname == "LIST_APPEND" and type(tx.stack[-1 - inst.arg]) is Watched:
        entry = tx.pop()
        tx.stack[-inst.arg].append(tx, entry)
        return True
    if not _adds(inst) or type(tx.stack[-2]) is not Watched:
        return False
    if type(tx.stack[-1]) not in (ListVariable, TupleVariable):
        return False
    for entry in tx.pop().items:
        tx.stack[-1].append(tx, entry)
    return True


def _read(tx: Any, inst: Any, taken: Taken) -> bool:
    if inst.opname != "BINARY_SUBSCR" or type(tx.stack[-1]) is not SymNodeVariable:
        return False
    entries = tx.stack[-2]
    if type(entries) not in (TupleVariable, Watched):
        return False
    entries = entries.read() if type(entries) is Watched else entries.items
    if any(map(is_stand_in, entries)):
        return False  # what steps hand on is not there yet for later steps
    found = taken.entry(entries, tx.stack[-1])
    if found is None:
        return False
    tx.popn(2)
    tx.push(found)
    return True


def _written(tx: Any, inst: Any, taken: Taken) -> bool:
    if inst.opname != "STORE_SUBSCR" or type(tx.stack[-1]) is not SymNodeVariable:
        return False
    entries = tx.stack[-2]
    places = taken.places(tx.stack[-1], entries.length()) if type(entries) is Watched else None
    if places is None:
        return False
    entry, _, _ = tx.popn(3)
    entries.write(tx, places, entry)
    return True


def _adds(inst: Any) -> bool:
    return inst.opname == "INPLACE_ADD" or (inst.opname == "BINARY_OP" and inst.arg == _ADDS)


def _asks(inst: Any) -> bool:
    """Whether an instruction takes a truth value from the stack."""
    jumps = inst.opname.startswith("POP_JUMP") and inst.opname.endswith(("_TRUE", "_FALSE"))
    return jumps or inst.opname in ("TO_BOOL", "UNARY_NOT")


__all__ = ["done"]
