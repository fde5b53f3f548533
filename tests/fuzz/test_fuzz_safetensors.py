"""Hostile and damaged safetensors files, before all who read their headers and their numbers."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from lora_train.core.checkpoints import facts_of
from lora_train.core.errors import ModelError
from lora_train.core.inspection import describe, inspect_file
from lora_train.core.lora_facts import lora_facts
from lora_train.core.lora_files import plain_lora_modules
from lora_train.core.tensor_infos import ITEM_BYTES, tensor_bytes
from lora_train.core.tensorfiles import read_tensor_file

_SD2_TELLTALE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_NAMES = (
    *("lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.lora_up.weight", "lora_unet_mid_block.alpha"),
    *("lora_te1_x_self_attn_q_proj.lora_down.weight", "unet.x.attn2.to_k.lora_A.weight", "x.hada_w1_a", "x.lokr_w1"),
    *("model.diffusion_model.input_blocks.0.0.weight", _SD2_TELLTALE, "ztsnr", "v_pred", "edm_mean"),
    *("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", "decoder.conv_in.weight", "emb_params"),
    *("conditioner.embedders.1.model.ln_final.weight", "double_blocks.0.img_attn", "joint_blocks.0.x_block.attn"),
)
_KEYS = ("ss_v2", "sshs_model_hash", "ss_base_model_version", "modelspec.architecture", "ss_tag_frequency")


def safetensors(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def lora(metadata: dict[str, str] | None = None) -> bytes:
    """A valid one of two layers, with numbers."""
    header: dict[str, Any] = {"__metadata__": metadata or {"ss_base_model_version": "sd_v1", "ss_tag_frequency": "{}"}}
    data = b""
    for layer in ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"):
        for part, shape in (("alpha", []), ("lora_down.weight", [4, 8]), ("lora_up.weight", [8, 4])):
            content = struct.pack("<f", 4.0) * max(1, math.prod(shape))
            header[f"{layer}.{part}"] = entry("F32", shape, len(data), len(data) + len(content))
            data += content
    return safetensors(header, data)


def look_at(path: Path) -> None:
    """As the page, the command line and the API do; what is found must be fit to be shown and sent."""
    found = inspect_file(path, verify_hash=True)
    describe(found).encode("utf-8")
    msgspec.json.encode(found)
    file = read_tensor_file(path)
    for info in file.tensors.values():
        assert len(tensor_bytes(path, info)) == info.nbytes <= path.stat().st_size
    for read in (facts_of, plain_lora_modules, lambda given: lora_facts(given, verify_hash=False)):
        with contextlib.suppress(ModelError):
            msgspec.json.encode(read(file))


# --- headers that hypothesis thinks of ---

_numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**4000, -1, -(2**63)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
_texts = st.one_of(st.text(max_size=20), st.sampled_from(["\ud800", "\x00", "{}", "[[[[", '{"a": NaN}', '["\\ud800"]']))
_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts), lambda inner: st.lists(inner, max_size=4), max_leaves=8
)
_entries = st.one_of(
    st.builds(
        lambda dtype, shape, begin, off: entry(
            dtype, shape, begin, begin + math.prod(shape) * ITEM_BYTES.get(dtype, 1) + off
        ),
        st.sampled_from([*ITEM_BYTES, "F4", "f32"]),
        st.lists(st.integers(0, 5), max_size=4),
        st.integers(0, 64),
        st.sampled_from([0, 0, 0, 0, 1, -1]),
    ),
    st.builds(entry, st.one_of(st.sampled_from(["F32", "F16", "C64"]), _values), _values, _numbers, _numbers),
    st.builds(entry, st.just("F32"), st.lists(_numbers, max_size=10), st.just(0), _numbers),
    _values,
)
_keys = st.one_of(st.sampled_from(_NAMES), _texts)
_metadata = st.one_of(
    st.dictionaries(
        st.one_of(_texts, st.sampled_from(["ss_v2", "sshs_model_hash", "ss_base_model_version"])), _texts, max_size=4
    ),
    _values,
)


@pytest.mark.parametrize("is_told", [True, False])
def test_headers_of_any_shape(tmp_path: Path, guard: Any, each: Any, is_told: bool) -> None:
    path = tmp_path / "model.safetensors"
    headers = st.tuples(st.dictionaries(_keys, _entries, max_size=5), _metadata, st.integers(0, 400))

    def case(given: tuple[dict[str, Any], Any, int]) -> None:
        header, metadata, size = given
        if is_told:
            header = {"__metadata__": metadata, **header}
        path.write_bytes(safetensors(header, bytes(size)))
        guard(look_at, path)

    each(headers, 1_500, case)
    assert guard.refused < guard.cases, "every one was refused: nothing behind the first check was tried"


def test_valid_tensors_of_every_kind(tmp_path: Path, guard: Any, each: Any) -> None:
    """Tensors that lie as they should, under names that mean something, so that all readers get to them."""
    path = tmp_path / "model.safetensors"
    one = st.tuples(
        st.sampled_from(_NAMES), st.sampled_from([*ITEM_BYTES]), st.lists(st.integers(0, 4), max_size=5), st.binary()
    )

    def case(given: list[tuple[str, str, list[int], bytes]]) -> None:
        header: dict[str, Any] = {}
        data = b""
        for name, dtype, shape, content in given:
            nbytes = math.prod(shape) * ITEM_BYTES[dtype]
            header[name] = entry(dtype, shape, len(data), len(data) + nbytes)
            data += (content * (nbytes + 1))[:nbytes].ljust(nbytes, b"\xff")
        path.write_bytes(safetensors(header, data))
        assert not isinstance(guard(read_tensor_file, path), ModelError)
        guard(look_at, path)

    each(st.lists(one, max_size=6, unique_by=lambda given: given[0]), 1_000, case)


# --- and that are drawn ---


@pytest.mark.parametrize("seed", range(4))
def test_drawn_headers(tmp_path: Path, guard: Any, share: Callable[[int], int], odd: Any, seed: int) -> None:
    random, path = Random(f"headers {seed}"), tmp_path / "model.safetensors"
    for _ in range(share(5_000)):
        header: dict[str, Any] = {}
        at = 0
        for _ in range(random.randrange(5)):
            shape = [random.randrange(4) for _ in range(random.randrange(5))]
            dtype = random.choice([*ITEM_BYTES])
            end = at + math.prod(shape) * ITEM_BYTES[dtype]
            header[random.choice(_NAMES)] = entry(dtype, shape, at, end)
            at = end
        if random.random() < 0.5:
            header["__metadata__"] = {random.choice(_KEYS): odd.odd_text(random) for _ in range(3)}
        data = random.randbytes(at)
        if random.random() < 0.6:
            header = odd.spoilt(header, random)
        path.write_bytes(safetensors(odd.json_bytes(header, random), data))
        guard(look_at, path)
    assert 0 < guard.refused < guard.cases


# --- valid files, damaged ---


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files(
    tmp_path: Path, guard: Any, share: Callable[[int], int], damaged: Callable[[bytes, Random], bytes], seed: int
) -> None:
    random, raw = Random(f"safetensors {seed}"), lora()
    path = tmp_path / "model.safetensors"
    header_end = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(share(5_000)):
        head = damaged(raw[8:header_end], random) if random.random() < 0.7 else raw[8:header_end]
        whole = safetensors(head, raw[header_end:]) if random.random() < 0.7 else damaged(raw, random)
        path.write_bytes(whole)
        guard(look_at, path)
    assert 0 < guard.refused < guard.cases


# --- and those that somebody made to do harm ---

_DATA = bytes(64)
_ONE = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
_HOSTILE: dict[str, bytes] = {
    "a length beyond the file": safetensors(b"{}", length=10**6),
    "a length of all ones": safetensors(b"{}", length=2**64 - 1),
    "a length just above the limit": safetensors(b"{}", length=100_000_001),
    "a length of nothing": safetensors(b"{}", length=0),
    "not UTF-8": safetensors(b'{"\xff\xfe": 1}', _DATA),
    "half of a surrogate pair": safetensors(('{"\\ud800' + _ONE[1:] + "}").encode(), _DATA),
    "half of a surrogate pair in metadata": safetensors(
        ('{"__metadata__":{"a":"\\udfff"},' + _ONE + "}").encode(), _DATA
    ),
    "one name twice": safetensors(f"{{{_ONE},{_ONE}}}".encode(), _DATA),
    "one name twice, in other spelling": safetensors(
        f"{{{_ONE},{_ONE.replace('a', chr(92) + 'u0061', 1)}}}".encode(), _DATA
    ),
    "metadata twice": safetensors(b'{"__metadata__":{"a":"b"},"__metadata__":{}}', _DATA),
    "overlapping": safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, _DATA),
    "the same place twice": safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, _DATA),
    "negative": safetensors({"a": entry("F32", [-1], 4, 0)}, _DATA),
    "two negatives": safetensors({"a": entry("F32", [-1, -2], 0, 8)}, _DATA),
    "too large a number": safetensors({"a": entry("F32", [2**63, 2], 0, 8)}, _DATA),
    "a product of more digits than Python writes": safetensors(
        f'{{"a":{{"dtype":"F32","shape":[{",".join(["9" * 4200] * 8)}],"data_offsets":[0,4]}}}}'.encode(), _DATA
    ),
    "a number of a million digits": safetensors(
        f'{{"a":{{"dtype":"F32","shape":[{"9" * 10**6}],"data_offsets":[0,4]}}}}'.encode(), _DATA
    ),
    "not a number": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', _DATA),
    "infinite": safetensors(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,-Infinity]}}', _DATA),
    "a hundred dimensions": safetensors({"a": entry("F32", [1] * 100, 0, 4)}, _DATA),
    "deep": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "deep lists": safetensors(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "deep lists that nobody closes": safetensors(b'{"a":' + b"[" * 500_000),
    "deep in its metadata": safetensors({"__metadata__": {"x": "[" * 100_000}}),
    "deep in its metadata, closed": safetensors({"__metadata__": {"x": "[" * 900 + "]" * 900}}),
    "a large number in its metadata": safetensors(
        {"__metadata__": {"x": '{"n": 1' + "0" * 30 + "}", "y": "[1" + "0" * 4000 + "]"}}
    ),
    "no finite number in its metadata": safetensors({"__metadata__": {"x": "[NaN, -Infinity, 1e999]"}}),
    "half a surrogate pair in JSON in its metadata": safetensors({"__metadata__": {"x": '["\\ud800"]'}}),
    "a name of a megabyte": safetensors({"a" * 2**20: entry("F32", [1], 0, 4)}, _DATA),
    "a name that takes expressions long": safetensors(
        {"x" + ".lora_magnitude_vector" * 40_000 + "!": entry("F32", [1], 0, 4)}, _DATA
    ),
    "a format of a megabyte": safetensors({"a": entry("F" * 2**20, [1], 0, 4)}, _DATA),
    "no finite numbers": safetensors(
        {
            "model.diffusion_model.input_blocks.0.0.weight": entry("F32", [0, 4, 3, 3], 0, 0),
            "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": entry("F32", [0], 0, 0),
            _SD2_TELLTALE: entry("F64", [2], 0, 16),
        },
        struct.pack("<dd", 1.7e308, -1.7e308),
    ),
    "a web page": b"<!DOCTYPE html><html>",
    "nothing": b"",
    "seven bytes": b"1234567",
}


@pytest.mark.parametrize("what", _HOSTILE)
def test_hostile_files(tmp_path: Path, guard: Any, what: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_HOSTILE[what])
    guard(look_at, path)


def test_every_length_that_its_beginning_may_tell(tmp_path: Path, guard: Any, share: Callable[[int], int]) -> None:
    path, raw, random = tmp_path / "model.safetensors", lora(), Random("lengths")
    for number in range(share(3_000)):
        length = number if number < 1_000 else random.getrandbits(random.randrange(1, 65))
        path.write_bytes(struct.pack("<Q", length) + raw[8:])
        guard(look_at, path)


def test_a_long_header_with_its_last_name_twice_is_refused_at_once(tmp_path: Path, guard: Any) -> None:
    """Comparing each of 60,000 names with all others would take minutes."""
    names = [f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(60_000)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(f"{{{','.join([*names, names[-1]])}}}".encode()))
    error = guard(read_tensor_file, path)
    assert isinstance(error, ModelError)
    assert "twice" in error.message


def test_a_yaml_of_blank_lines_takes_no_time(tmp_path: Path, guard: Any) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"model.diffusion_model.input_blocks.0.0.weight": entry("F32", [0, 4, 3, 3], 0, 0)}))
    path.with_suffix(".yaml").write_bytes(b"\n" * 200_000 + b"x")
    assert not isinstance(guard(look_at, path), ModelError)
