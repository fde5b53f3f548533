"""The names that the pickle of a plain checkpoint has a use for: all others are refused (see `core.pickles`)."""

from __future__ import annotations

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
"""Number format of a storage's class, in safetensors' words."""

TORCH_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
"""Likewise of torch's own names."""

MAPPINGS = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
}
"""What makes a dict."""

TENSORS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
"""What makes a tensor of a storage."""

WRAPPERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
}
"""What gives its first argument back, wrapped in a class."""

WITH_TYPE = "torch._tensor._rebuild_from_type_v2"
"""What calls its first argument with its third."""

# What else plain checkpoints hold beside their tensors: never needed, so never looked into.
_IGNORED = {
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.modules.container.ParameterDict",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "typing.Any",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
}

_BUILTINS = {"set", "frozenset", "list", "dict", "tuple", "bytearray", "complex"}

# Training frameworks whose settings public checkpoints carry along, as Stable Diffusion 1.4 does.
_FRAMEWORKS = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")


def is_known(path: str) -> bool:
    """Whether a checkpoint may name this function or class, `module.name`. What it names is not called even so."""
    module, _, name = path.rpartition(".")
    if path in MAPPINGS | TENSORS | WRAPPERS | _IGNORED or path == WITH_TYPE:
        return True
    if module in ("builtins", "__builtin__"):
        return name in _BUILTINS
    if module in ("torch", "torch.cuda", "torch.storage"):
        return name in STORAGE_DTYPES or name in TORCH_DTYPES
    # Their classes only (by the capital letter); their functions are refused like all others.
    return path.split(".")[0] in _FRAMEWORKS and name[:1].isupper()
