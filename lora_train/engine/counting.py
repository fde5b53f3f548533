"""Counts what code asks of a CUDA device, without one: it is run with tensors on the meta device.

Such tensors have shapes and strides but no numbers, so a full-size model takes seconds and next to no memory.
(FakeTensors are the same under the name of a device. With "cuda" for that name a torch without CUDA ends the process
in the backward pass, and torch's multi-tensor optimizers and clipping refuse them.)

A kernel is a leaf ATen call other than views and metadata. Attention, a convolution, its backward and a fused
optimizer step are one each; copies that only change a tensor's layout count, and so do copies from and to the host.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten

META = torch.device("meta")

_own_attention, _own_tensor = functional.scaled_dot_product_attention, torch.tensor

_FREE = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(aten.resize_, aten.set_, aten._unsafe_view),
}
"""Calls that move no data, though by their schema they are no views."""
_COPIES = {aten._to_copy, aten.copy_}
_ONLY_WRITE = {aten.copy_, aten.fill_, aten.zero_, aten._foreach_copy_, aten._foreach_zero_}
"""Calls that don't read what they write over."""

_FORMULAS: dict[Any, Any] = {**flop_registry, aten.addbmm: flop_registry[aten.baddbmm]}


class Work(NamedTuple):
    """What a part of a step asks for. bytes_moved: every tensor that a kernel reads or writes, once for each kernel."""

    kernels: int = 0
    bytes_moved: int = 0
    flops: int = 0
    host_syncs: int = 0

    def plus(self, other: Work) -> Work:
        return Work(*(own + its for own, its in zip(self, other, strict=True)))


class StepCounter(TorchDispatchMode):
    """Counts by phases; see `counting`.

    phase        where the next calls belong. What autograd calls belongs to "backward", what follows it to "clip".
    calls        how often each kernel was called, by name
    syncs        what the host waited for, by name
    peak_bytes   the most that tensors took together since the last `restart`, those that were there included
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = "other"
        self.work: dict[str, Work] = {}
        self.calls: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.peak_bytes = 0
        self._alive_bytes = 0
        self._storages: dict[int, Any] = {}

    @property
    def total(self) -> Work:
        total = Work()
        for work in self.work.values():
            total = total.plus(work)
        return total

    def restart(self) -> None:
        """Forget what was counted; tensors that are alive stay."""
        self.work, self.peak_bytes = {}, self._alive_bytes
        self.calls.clear()
        self.syncs.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._follow_autograd()
        syncs = int(_waits(func, args, kwargs))
        returned = _run(func, args, kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(returned)
        on_device = [tensor for tensor in (*inputs, *outputs) if tensor.is_meta]
        for tensor in on_device:
            self._hold(tensor)
        written = _written(func, args, kwargs, outputs)
        is_kernel = bool(on_device and written) and not _is_free(func)
        if is_kernel or syncs:
            self._add(func, is_kernel, _bytes(func, inputs, written), _flops(func, args, kwargs, returned), syncs)
        return returned

    def _add(self, func: Any, is_kernel: bool, moved: int, flops: int, syncs: int) -> None:
        name = str(func._overloadpacket).removeprefix("aten.")
        work = Work(1, moved, flops, syncs) if is_kernel else Work(host_syncs=syncs)
        self.work[self.phase] = self.work.get(self.phase, Work()).plus(work)
        self.calls += Counter({name: int(is_kernel)})
        self.syncs += Counter({name: syncs})

    def _follow_autograd(self) -> None:
        if torch._C._current_graph_task_id() != -1:
            self.phase = "backward"
        elif self.phase == "backward":
            self.phase = "clip"

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size_bytes = storage.nbytes()

        def let_go(_: Any) -> None:
            self._alive_bytes -= size_bytes
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, let_go)
        self._alive_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes)


@contextmanager
def counting() -> Generator[StepCounter, None, None]:
    """Count all that is done with meta tensors within the block, the choices being those that CUDA would make."""
    with ExitStack() as stack:
        for module in map(import_module, ("torch.utils._foreach_utils", "torch.optim.optimizer")):
            for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
                if hasattr(module, name):
                    stack.enter_context(replaced(module, name, lambda: [META.type]))
        stack.enter_context(replaced(functional, "scaled_dot_product_attention", _attention))
        stack.enter_context(replaced(torch, "tensor", _tensor))
        yield stack.enter_context(StepCounter())


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Generator[None, None, None]:
    """Let `owner` have another attribute within the block."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`functional.scaled_dot_product_attention`: on CUDA one kernel of several, all of the same shape."""
    if args or kwargs.get("attn_mask") is not None:
        return _own_attention(q, k, v, *args, **kwargs)
    options = {key: kwargs[key] for key in ("dropout_p", "is_causal", "scale") if key in kwargs}
    return aten._scaled_dot_product_flash_attention(q, k, v, **options)[0]


def _tensor(data: Any, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor`: one for CUDA is made on the host, and copied."""
    if torch.device(kwargs.get("device") or "cpu") == META:
        return _own_tensor(data, **{**kwargs, "device": "cpu"}).to(META)
    return _own_tensor(data, **kwargs)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """The call, or what stands for its result where there are no numbers to tell it."""
    packet = func._overloadpacket
    if packet is aten._local_scalar_dense and args[0].is_meta:
        return torch.ones((), dtype=args[0].dtype).item()
    if packet is aten.equal and args[0].is_meta:
        return True
    if packet is aten.nonzero and args[0].is_meta:  # as if everything were
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if packet in _COPIES and _goes_to_host(func, args, kwargs):
        return args[0] if packet is aten.copy_ else torch.zeros(args[0].shape, dtype=kwargs.get("dtype"))
    if packet.__name__.startswith("_fused_"):  # optimizers: they change what is there, and return nothing
        return None
    returned = func(*args, **kwargs)
    if packet is aten.convolution:
        return _laid_out(returned, args[0], args[1])
    if packet is aten.convolution_backward:
        return (_laid_out(returned[0], args[1], args[2]), *returned[1:])
    return returned


def _laid_out(result: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """As cuDNN gives it: channels last where the input or the weight is."""
    if result is None or result.dim() != 4:
        return result
    if torch.channels_last in (suggest_memory_format(x), suggest_memory_format(weight)):
        return result.contiguous(memory_format=torch.channels_last)
    return result


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits for the device: it reads a number, or memory is copied that may not be pinned."""
    packet = func._overloadpacket
    if packet in (aten._local_scalar_dense, aten.equal, aten.nonzero):
        return args[0].is_meta
    if packet not in _COPIES:
        return False
    is_blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
    return is_blocking and (_goes_to_host(func, args, kwargs) or _comes_from_host(func, args, kwargs))


def _goes_to_host(func: Any, args: Any, kwargs: Any) -> bool:
    if func._overloadpacket is aten.copy_:
        return args[1].is_meta and not args[0].is_meta
    return args[0].is_meta and torch.device(kwargs.get("device") or META).type != META.type


def _comes_from_host(func: Any, args: Any, kwargs: Any) -> bool:
    if func._overloadpacket is aten.copy_:
        return args[0].is_meta and not args[1].is_meta
    return not args[0].is_meta and torch.device(kwargs.get("device") or "cpu").type == META.type


def _is_free(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return is_view or func._overloadpacket in _FREE or func.namespace in ("prim", "profiler")


def _written(func: Any, args: Any, kwargs: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results, and the arguments that the call changes in place."""
    given = [*zip(func._schema.arguments, args, strict=False)]
    given += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
    changed = [value for argument, value in given if argument.alias_info is not None and argument.alias_info.is_write]
    return _tensors(changed) or outputs


def _bytes(func: Any, inputs: list[torch.Tensor], written: list[torch.Tensor]) -> int:
    read = inputs[1:] if func._overloadpacket in _ONLY_WRITE else inputs
    return sum(_own_bytes(tensor) for tensor in (*read, *written) if tensor.is_meta)


def _own_bytes(tensor: torch.Tensor) -> int:
    """Expanded sides, which repeat the same memory, count once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()


def _flops(func: Any, args: Any, kwargs: Any, returned: Any) -> int:
    """Of products, convolutions and attention, by torch's own formulas: two for a multiplication and an addition."""
    packet = func._overloadpacket
    formula = _FORMULAS.get(packet) or _FORMULAS.get(getattr(aten, packet.__name__.rstrip("_"), None))
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=returned))


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
