"""Reading the pickle inside a .ckpt or .pt file without running it.

A pickle is a program: unpickling imports and calls whatever it names. Here it is read instead: a
small stack machine follows the opcodes (as `pickletools` decodes them) and only ever builds lists,
dicts, tuples, numbers, texts and the stand-ins below. Nothing is imported and nothing is called,
whatever the file says. Names that a plain checkpoint has no use for are refused, so that the file's
owner hears of them.
"""

from __future__ import annotations

import io
import pickletools  # nosec B403
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple, cast

from lora_train.core.errors import ModelError
from lora_train.core.pickle_names import (
    MAPPINGS,
    STORAGE_DTYPES,
    TENSORS,
    TORCH_DTYPES,
    WITH_TYPE,
    WRAPPERS,
    is_known,
)

MAX_PICKLE_BYTES = 64 * 1024 * 1024
"""A checkpoint's pickle holds names and shapes: about 1 MB. More than this is not a checkpoint."""

MAX_OPERATIONS = 2_000_000
"""About 45 operations describe a tensor, so this is room for 40,000; it bounds time and memory."""

MAX_DIMENSIONS = 8
"""No model's tensors have more."""

_MAX_LINE_BYTES = 4_000
"""Of a number or text that is written as a line: torch writes names so. A number of a million digits takes minutes."""
_MAX_NAME_LENGTH = 200
"""Characters of a module and a class: they are joined each time that they are called."""

# Opcodes that push the value they carry.
_LITERALS = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
    *("BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
}


@dataclass(frozen=True)
class StorageReference:
    """A block of `numel` numbers in the file, outside the pickle. `dtype` in safetensors' words."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: `offset` and `stride` count elements of `dtype`."""

    storage: StorageReference
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names; only the name."""

    path: str


class Opaque:
    """An object that the pickle describes and we have no use for."""


_MARK = Opaque()


class Described(NamedTuple):
    """What a pickle describes, and every storage that it mentions, by key.

    `value` is made of plain Python values, `StoredTensor` for tensors and `Opaque` for the rest.
    Its dicts hold only the entries under text keys.
    """

    value: object
    storages: dict[str, StorageReference]


def read_pickle(stream: IO[bytes], source: str) -> Described:
    """Read one pickle from `stream`, which then stands after it. `source` names it in messages.

    Raises ModelError when the pickle names anything that a checkpoint does not need, is damaged, or
    is too large (`MAX_PICKLE_BYTES`, `MAX_OPERATIONS`).
    """
    start = stream.tell()
    content = _Lines(stream.read(MAX_PICKLE_BYTES))
    machine = _Machine(source)
    try:
        value = machine.run(content)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        limit = f" (only {MAX_PICKLE_BYTES:,} bytes of it are read)"
        raise ModelError(
            f"{source} is damaged: its list of tensors can't be read"
            f"{limit if content.tell() >= MAX_PICKLE_BYTES else ''}: {type(error).__name__}.",
            "Download the file again, or use a .safetensors version of it.",
        ) from error
    stream.seek(start + content.tell())
    return Described(value, machine.storages)


class _Lines(io.BytesIO):
    """A pickle whose lines are short."""

    def readline(self, size: int | None = -1, /) -> bytes:
        del size  # pickletools asks for whole lines
        line = super().readline(_MAX_LINE_BYTES + 1)
        if len(line) > _MAX_LINE_BYTES:
            raise ValueError
        return line


def refused(source: str, name: str) -> ModelError:
    """The error for a pickle that wants `name`."""
    return ModelError(
        f"{source} asks to run `{name[:100]}`, which no checkpoint needs. It was not opened.",
        "Such files can carry programs. Use the .safetensors version, from people you trust.",
    )


class _Machine:
    """The pickle virtual machine without its power to import and call."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, StorageReference] = {}
        self.steps: dict[str, Callable[[], None]] = {
            "MARK": lambda: self.push(_MARK),
            "POP": self._discard,
            "POP_MARK": self._discard_to_mark,
            "DUP": lambda: self.push(self.stack[-1]),
            "NONE": lambda: self.push(None),
            "NEWTRUE": lambda: self.push(True),
            "NEWFALSE": lambda: self.push(False),
            "EMPTY_TUPLE": lambda: self.push(()),
            "EMPTY_LIST": lambda: self.push([]),
            "EMPTY_DICT": lambda: self.push({}),
            "EMPTY_SET": lambda: self.push(Opaque()),
            "TUPLE": lambda: self.push(tuple(self.pop_to_mark())),
            "TUPLE1": lambda: self.push(tuple(self.pop_many(1))),
            "TUPLE2": lambda: self.push(tuple(self.pop_many(2))),
            "TUPLE3": lambda: self.push(tuple(self.pop_many(3))),
            "LIST": lambda: self.push(self.pop_to_mark()),
            "DICT": self._dict,
            "FROZENSET": self._frozenset,
            "APPEND": lambda: self._extend(self.pop_many(1)),
            "APPENDS": lambda: self._extend(self.pop_to_mark()),
            "ADDITEMS": self._discard_to_mark,
            "SETITEM": lambda: self._set_items(self.pop_many(2)),
            "SETITEMS": lambda: self._set_items(self.pop_to_mark()),
            "MEMOIZE": lambda: self._remember(len(self.memo)),
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._reduce,
            "NEWOBJ": self._reduce,
            "NEWOBJ_EX": self._new_with_keywords,
            "OBJ": self._obj,
            "BUILD": self._discard,  # the state of an object: nothing of it is needed
            "BINPERSID": lambda: self.push(self._storage(self.stack.pop())),
        }

    def run(self, content: io.BytesIO) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count >= MAX_OPERATIONS:
                raise ModelError(
                    f"{self.source} is no checkpoint: its list of tensors takes more than "
                    f"{MAX_OPERATIONS:,} operations to read."
                )
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: object) -> None:
        step = self.steps.get(name)
        if step is not None:
            step()
        elif name in ("PROTO", "FRAME"):
            return
        elif name in ("GLOBAL", "INST"):
            # pickletools joins the two lines "module" and "name" with a blank.
            module, _, attribute = str(argument).partition(" ")
            function = self._name(module, attribute)
            self.push(self._call(function, self.pop_to_mark()) if name == "INST" else function)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(cast("int", argument))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.push(self.memo[cast("int", argument)])
        elif name in _LITERALS:
            self.push(argument)
        else:
            raise ValueError(name)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop_many(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_to_mark(self) -> list[object]:
        values: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _discard(self) -> None:
        self.stack.pop()

    def _discard_to_mark(self) -> None:
        self.pop_to_mark()

    def _frozenset(self) -> None:
        self.pop_to_mark()
        self.push(Opaque())

    def _remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _dict(self) -> None:
        items = self.pop_to_mark()
        self.push({})
        self._set_items(items)

    def _extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            cast("list[object]", target).extend(values)

    def _set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Other keys are never needed, and hashing a deeply nested tuple would crash Python.
                if isinstance(key, str):
                    target[key] = value

    def _name(self, module: object, attribute: object) -> Name:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise TypeError
        if len(module) + len(attribute) > _MAX_NAME_LENGTH:
            raise refused(self.source, module[:_MAX_NAME_LENGTH])
        path = f"{module}.{attribute}"
        # A dot in the attribute would lead from a harmless module to whatever it imports.
        if "." in attribute or not is_known(path):
            raise refused(self.source, path)
        return Name(path)

    def _stack_global(self) -> None:
        module, attribute = self.pop_many(2)
        self.push(self._name(module, attribute))

    def _reduce(self) -> None:
        function, arguments = self.pop_many(2)
        self.push(self._call(function, _tuple(arguments)))

    def _new_with_keywords(self) -> None:
        function, arguments, _ = self.pop_many(3)
        self.push(self._call(function, _tuple(arguments)))

    def _obj(self) -> None:
        function, *arguments = self.pop_to_mark()
        self.push(self._call(function, arguments))

    def _call(self, function: object, arguments: Sequence[object]) -> object:
        """What calling `function` would give, described by a stand-in."""
        if not isinstance(function, Name):
            raise TypeError
        if function.path in MAPPINGS:
            return _mapping(arguments)
        if function.path in TENSORS:
            return _tensor(arguments)
        if function.path in WRAPPERS:
            return arguments[0] if arguments else Opaque()
        if function.path == WITH_TYPE:
            return self._call(arguments[0], _tuple(arguments[2]))
        return Opaque()

    def _storage(self, reference: object) -> StorageReference:
        """("storage", class, key, device, numel[, view]) as torch.save writes it; views never."""
        told = _tuple(reference)
        if not 5 <= len(told) <= 6:
            raise ValueError
        kind, storage_type, key, _, numel, *view = told
        if kind != "storage" or not isinstance(storage_type, Name) or any(view):
            raise ValueError(kind)
        dtype = STORAGE_DTYPES[storage_type.path.rpartition(".")[2]]
        storage = StorageReference(storage_key(key), dtype, _count(numel))
        self.storages[storage.key] = storage
        return storage


def storage_key(key: object) -> str:
    """What a storage is called. Raises TypeError or ValueError for what no checkpoint has: a list that holds another
    one twice, and so on, has more text than there is memory for.
    """
    return key if isinstance(key, str) else str(_count(key))


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError
    return value


def _tuple(value: object) -> tuple[object, ...]:
    """The value itself: a copy would let a short file ask for a long one again and again."""
    if not isinstance(value, tuple):
        raise TypeError
    return cast("tuple[object, ...]", value)


def _counts(values: object) -> tuple[int, ...]:
    numbers = _tuple(values)
    if len(numbers) > MAX_DIMENSIONS:
        raise ValueError
    return tuple(_count(number) for number in numbers)


def _mapping(arguments: Sequence[object]) -> dict[str, object]:
    """From nothing or from a dict. No copy: a hostile file could ask for a million of them."""
    content = arguments[-1] if arguments else None
    return cast("dict[str, object]", content) if isinstance(content, dict) else {}


def _tensor(arguments: Sequence[object]) -> StoredTensor:
    """(storage, offset, shape, stride, …); version 3 names its number format in seventh place."""
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, StorageReference):
        raise TypeError
    dtype = storage.dtype
    if len(arguments) > 6 and isinstance(arguments[6], Name):
        dtype = TORCH_DTYPES[arguments[6].path.rpartition(".")[2]]
    tensor = StoredTensor(storage, dtype, _count(offset), _counts(shape), _counts(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError
    return tensor
