"""Reads a pickle as data: its imports and calls are recorded, never carried out.

The standard Unpickler cannot be bounded: it needs hours to hash a nested tuple as a dictionary key, and gigabytes for a memo
index of two billion. Here dictionaries are lists of pairs and the memo is a dictionary, so time and memory are bounded by the
length of the pickle. Covers the opcodes that pickle protocols 2 to 5 write.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ckptsync.layouts.formats.pickle_values import Call, Content, Global, Items
from ckptsync.layouts.formats.stream import Malformed


def read(content: bytes, *, steps: int | None = 8_000_000) -> Content:
    """Read the one pickle that fills `content`, or raise Malformed. Executes nothing.

    `steps` bounds the number of opcodes (some 25 for a tensor; 0.6 µs and 60 bytes each).
    """
    machine = _Machine(content)
    try:
        value = machine.run(len(content) if steps is None else steps)
    except (IndexError, KeyError, struct.error, AttributeError, TypeError, ValueError) as error:
        raise error if isinstance(error, Malformed) else Malformed("not a complete pickle") from None
    if machine.position != len(content):
        raise Malformed("has bytes after the end of its pickle")
    return Content(value, tuple(machine.globals), tuple(machine.calls))


class _Mark:
    """Where a run of items begins on the stack."""


_MARK = _Mark()


class _Machine:
    """The stack, the memo and the position while one pickle is read."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: list[Global] = []
        self.calls: list[Call] = []

    def run(self, steps: int) -> Any:
        """Read opcodes up to STOP and return the one value on the stack."""
        for _ in range(steps):
            code = self.content[self.position]
            self.position += 1
            if code == 0x2E:
                (value,) = self.stack
                return value
            OPCODES[code](self)
        raise Malformed(f"its pickle has more than {steps} opcodes", transient=False)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.content):
            raise Malformed("its pickle is truncated")
        taken, self.position = self.content[self.position : end], end
        return taken

    def line(self) -> bytes:
        end = self.content.index(b"\n", self.position)
        taken, self.position = self.content[self.position : end], end + 1
        return taken

    def items(self) -> list[Any]:
        """Pop everything above the topmost mark, and the mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                taken = self.stack[at + 1 :]
                del self.stack[at:]
                return taken
        raise Malformed("its pickle lacks a mark")

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed("its pickle names a global by something other than text", transient=False)
        found = Global(module, name)
        self.globals.append(found)
        self.stack.append(found)

    def call(self, by: Any, arguments: Any) -> None:
        found = Call(by, arguments)
        self.calls.append(found)
        self.stack.append(found)


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _empty(kind: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(kind())


def _unsigned(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(size))


def _signed(machine: _Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True))


def _long(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(int.from_bytes(machine.take(machine.number(size)), "little", signed=True))


def _float(machine: _Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _text(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(size)).decode("utf-8", "surrogatepass"))


def _bytes(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(size)))


def _skip(size: int) -> Callable[[_Machine], None]:
    def skip(machine: _Machine) -> None:
        machine.take(size)

    return skip


def _tuple(size: int) -> Callable[[_Machine], None]:
    def collect(machine: _Machine) -> None:
        machine.stack[-size:] = [tuple(machine.stack[len(machine.stack) - size :])]

    return collect


def _put(size: int) -> Callable[[_Machine], None]:
    def put(machine: _Machine) -> None:
        machine.memo[machine.number(size)] = machine.stack[-1]

    return put


def _get(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.memo[machine.number(size)])


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: _Machine) -> None:
    values = machine.items()
    _extend(machine.stack[-1], values)


def _extend(target: Any, values: list[Any]) -> None:
    """Add to a list. Items added to the result of a call are dropped: nobody needs them."""
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Call):
        raise Malformed("its pickle appends to something other than a list")


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine.stack[-1], [key, value])


def _set_items(machine: _Machine) -> None:
    values = machine.items()
    _update(machine.stack[-1], values)


def _update(target: Any, values: list[Any]) -> None:
    items = target.items if isinstance(target, Call) else target
    if not isinstance(items, Items):
        raise Malformed("its pickle sets a key of something other than a dictionary")
    items.pairs.extend(zip(values[::2], values[1::2], strict=True))


def _global(machine: _Machine) -> None:
    machine.name(machine.line().decode("utf-8", "replace"), machine.line().decode("utf-8", "replace"))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _reduce(machine: _Machine) -> None:
    arguments, by = machine.stack.pop(), machine.stack.pop()
    machine.call(by, arguments)


def _reduce_with_keywords(machine: _Machine) -> None:
    keywords, arguments, by = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.call(by, (arguments, keywords))


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Call):
        machine.stack[-1].state = state


def _persistent(machine: _Machine) -> None:
    machine.stack[-1] = Call(None, machine.stack[-1])


def _marked(machine: _Machine, kind: Callable[[list[Any]], Any]) -> None:
    machine.stack.append(kind(machine.items()))


def _pop(machine: _Machine) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine) -> None:
    machine.items()


def _unknown(machine: _Machine) -> None:
    code = machine.content[machine.position - 1]
    raise Malformed(f"its pickle has the opcode {code:#04x}, which no checkpoint uses")


def _table(known: dict[int, Callable[[_Machine], None]]) -> list[Callable[[_Machine], None]]:
    return [known.get(code, _unknown) for code in range(256)]


OPCODES = _table(
    {
        0x80: _skip(1),  # PROTO
        0x95: _skip(8),  # FRAME
        ord("("): _push(_MARK),
        ord("N"): _push(None),
        0x88: _push(True),
        0x89: _push(False),
        ord("}"): _empty(Items),
        ord("]"): _empty(list),
        0x8F: _empty(list),  # EMPTY_SET
        ord(")"): _push(()),
        ord("J"): _signed,
        ord("K"): _unsigned(1),
        ord("M"): _unsigned(2),
        0x8A: _long(1),
        0x8B: _long(4),
        ord("G"): _float,
        ord("X"): _text(4),
        0x8C: _text(1),
        0x8D: _text(8),
        ord("B"): _bytes(4),
        ord("C"): _bytes(1),
        0x8E: _bytes(8),
        0x96: _bytes(8),  # BYTEARRAY8
        ord("U"): _bytes(1),
        ord("T"): _bytes(4),
        0x85: _tuple(1),
        0x86: _tuple(2),
        0x87: _tuple(3),
        ord("t"): lambda machine: _marked(machine, tuple),
        ord("l"): lambda machine: _marked(machine, list),
        0x91: lambda machine: _marked(machine, list),  # FROZENSET
        ord("d"): lambda machine: _marked(machine, lambda values: Items(list(zip(values[::2], values[1::2], strict=True)))),
        ord("q"): _put(1),
        ord("r"): _put(4),
        0x94: _memoize,
        ord("h"): _get(1),
        ord("j"): _get(4),
        ord("a"): _append,
        ord("e"): _appends,
        0x90: _appends,  # ADDITEMS
        ord("s"): _set_item,
        ord("u"): _set_items,
        ord("c"): _global,
        0x93: _stack_global,
        ord("R"): _reduce,
        0x81: _reduce,  # NEWOBJ
        0x92: _reduce_with_keywords,  # NEWOBJ_EX
        ord("b"): _build,
        ord("Q"): _persistent,
        ord("0"): _pop,
        ord("1"): _pop_mark,
        ord("2"): lambda machine: machine.stack.append(machine.stack[-1]),
    }
)
