"""What training makes of a base model: which are trained, what they predict, what a person may choose."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lora_train.core import presets
from lora_train.core.checkpoints import facts_of, read_checkpoint, require_supported, with_choices
from lora_train.core.errors import ConfigError, ModelError
from lora_train.core.families import FAMILY_LABELS, FAMILY_NAMES, CheckpointFacts
from lora_train.core.tensorfiles import read_tensor_file

UNET = "model.diffusion_model."
TELLTALE = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
PATH = Path("some.safetensors")


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """A safetensors file: dtype, shape and bytes by name."""
    header: dict[str, Any] = {}
    content = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)
    return path


def empty(*shape: int) -> tuple[str, list[int], bytes]:
    count = 1
    for length in shape:
        count *= length
    return "F16", list(shape), bytes(2 * count)


def sd2(path: Path, telltale: tuple[str, list[int], bytes] | None, in_channels: int = 4) -> Path:
    tensors = {
        UNET + "input_blocks.0.0.weight": empty(320, in_channels, 3, 3),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": empty(6, 1024),
    }
    return write(path, tensors | ({TELLTALE: telltale} if telltale else {}))


def spread(value: float, dtype: str) -> tuple[str, list[int], bytes]:
    """64 numbers, half of them `value` and half -`value`: their standard deviation is `value`."""
    numbers = [value, -value] * 32
    if dtype == "BF16":
        return dtype, [64], b"".join(struct.pack("<f", number)[2:] for number in numbers)
    kind = {"F16": "e", "F32": "f"}[dtype]
    return dtype, [64], struct.pack(f"<64{kind}", *numbers)


# --- the prediction ---


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize(("deviation", "prediction"), [(0.08, "epsilon"), (0.1, "v_prediction")])
@pytest.mark.parametrize("in_channels", [4, 9])
def test_one_tensor_tells_what_sd2_predicts(
    deviation: float, prediction: str, dtype: str, in_channels: int, tmp_path: Path
) -> None:
    """The border is a standard deviation of 0.09."""
    facts = read_checkpoint(sd2(tmp_path / "a.safetensors", spread(deviation, dtype), in_channels))
    assert facts.family == ("sd2" if in_channels == 4 else "sd2-inpaint")
    assert facts.prediction == prediction
    assert presets.native_resolution_px(facts) == (512 if prediction == "epsilon" else 768)


def test_sd2_without_that_tensor(tmp_path: Path) -> None:
    assert read_checkpoint(sd2(tmp_path / "a.safetensors", None)).prediction == "epsilon"
    nothing = ("F16", [0], b"")
    assert read_checkpoint(sd2(tmp_path / "b.safetensors", nothing)).prediction == "epsilon"
    with pytest.raises(ModelError, match="number format I32"):
        read_checkpoint(sd2(tmp_path / "c.safetensors", ("I32", [1], b"1234")))


@pytest.mark.parametrize(
    ("line", "prediction"),
    [
        ('    parameterization: "v"\n', "v_prediction"),
        ("    parameterization: v  # as trained\n", "v_prediction"),
        ("          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", "v_prediction"),
        ("          target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling\n", "epsilon"),
        ('    parameterization: "eps"\n', "epsilon"),
        ("    # parameterization: v\n", "epsilon"),
        ("", "epsilon"),
    ],
)
def test_the_yaml_beside_the_file_tells_v(line: str, prediction: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {UNET + "input_blocks.0.0.weight": empty(320, 4, 3, 3)})
    path.with_suffix(".yaml").write_text(f"model:\n  params:\n{line}", encoding="utf-8")
    assert facts_of(read_tensor_file(path)).prediction == prediction


EPSILON = CheckpointFacts("sdxl", prediction="epsilon")
V = CheckpointFacts("sdxl", prediction="v_prediction")
V_ZERO = CheckpointFacts("sdxl", prediction="v_prediction", zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("facts", "prediction", "zero", "expected"),
    [
        (EPSILON, "auto", "auto", ("epsilon", False)),
        (V, "auto", "auto", ("v_prediction", False)),
        (V_ZERO, "auto", "auto", ("v_prediction", True)),
        (V_ZERO, "auto", "off", ("v_prediction", False)),
        (V, "auto", "on", ("v_prediction", True)),
        (EPSILON, "v_prediction", "on", ("v_prediction", True)),
        (V_ZERO, "epsilon", "auto", ("epsilon", False)),
    ],
)
def test_choices(facts: CheckpointFacts, prediction: Any, zero: Any, expected: tuple[str, bool]) -> None:
    chosen = with_choices(facts, prediction, zero)
    assert (chosen.prediction, chosen.zero_terminal_snr) == expected
    assert msgspec.structs.replace(chosen, prediction=facts.prediction, zero_terminal_snr=facts.zero_terminal_snr) == (
        facts
    )


@pytest.mark.parametrize(("facts", "prediction"), [(EPSILON, "auto"), (V_ZERO, "epsilon")])
def test_zero_terminal_snr_needs_v(facts: CheckpointFacts, prediction: Any) -> None:
    with pytest.raises(ConfigError) as error:
        with_choices(facts, prediction, "on")
    assert error.value.problems == [
        "Zero terminal SNR: this model predicts epsilon; only v-prediction models can learn so."
    ]


# --- sizes ---


@pytest.mark.parametrize(
    ("family", "prediction", "channels", "size_px"),
    [
        ("sd1", "epsilon", 320, 512),
        ("sd1-inpaint", "epsilon", 320, 512),
        ("sd1", "v_prediction", 320, 512),
        ("sd2", "epsilon", 320, 512),
        ("sd2", "v_prediction", 320, 768),
        ("sd2-inpaint", "epsilon", 320, 512),
        ("sdxl", "epsilon", 320, 1024),
        ("sdxl-inpaint", "v_prediction", 320, 1024),
        ("sdxl", "epsilon", 32, 64),
        ("sd2", "v_prediction", 64, 64),
        ("sd1", "epsilon", None, 512),
    ],
)
def test_native_resolution(family: Any, prediction: Any, channels: int | None, size_px: int) -> None:
    facts = CheckpointFacts(family, prediction=prediction, model_channels=channels)
    assert presets.native_resolution_px(facts) == size_px


def test_native_resolution_of_nothing_known() -> None:
    assert presets.native_resolution_px(None) == 512


# --- what is trained ---


@pytest.mark.parametrize("family", sorted(FAMILY_LABELS))
def test_trained_families_pass(family: Any) -> None:
    require_supported(CheckpointFacts(family, prediction="epsilon"), PATH)


@pytest.mark.parametrize("family", sorted(FAMILY_NAMES.keys() - FAMILY_LABELS.keys() - {"unknown"}))
def test_others_are_named(family: Any) -> None:
    with pytest.raises(ModelError) as error:
        require_supported(CheckpointFacts(family), PATH)
    assert error.value.message == f"some.safetensors is {FAMILY_NAMES[family]}, which can't be trained here."


def test_models_of_another_prediction_are_refused() -> None:
    with pytest.raises(ModelError, match=r"an SDXL checkpoint that predicts neither epsilon nor v"):
        require_supported(CheckpointFacts("sdxl"), PATH)
