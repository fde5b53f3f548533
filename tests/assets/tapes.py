"""A `recordings.Recorder` for the CPU that is as strict as a CUDA graph: a tape of the operations themselves.

A replay calls each operation again on the tensors of the recording; none of the Python around them runs again. To
ask a tensor for its value is refused while recording, as a CUDA graph refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TapeRecorder:
    """Counts what it did: `runs`, `recordings`, `replays`."""

    def __init__(self) -> None:
        self.runs = self.recordings = self.replays = 0

    def run(self, work: Callable[[], Any]) -> Any:
        self.runs += 1
        return work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        tape = _Tape()
        try:
            with tape:
                work()
        finally:
            tape.undo()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        self._keep_what_changes(func, args, kwargs)
        found = func(*args, **kwargs)
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if is_view:
            return found
        is_new = not any(aliases)
        made = _tensors(found) if is_new else []
        self._made |= {_place(tensor) for tensor in made}
        self._calls.append((func, args, kwargs, made))
        return found

    def _keep_what_changes(self, func: Any, args: Any, kwargs: Any) -> None:
        """A recording does nothing: what it changes of the tensors that were there before is undone."""
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in _tensors(value):
                if _place(tensor) not in self._made | self._before.keys():
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
                    self._before[_place(tensor)] = whole, whole.clone()

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self._calls:
            found = func(*args, **kwargs)
            if made:
                for own, new in zip(made, _tensors(found), strict=True):
                    own.copy_(new)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
