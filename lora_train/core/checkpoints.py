"""What a base model is, from its file or folder, and whether and how it is trained.

What page, plan and worker know about a base model comes from here, so that they agree.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import cast

import msgspec

from lora_train.core.errors import ConfigError, ModelError
from lora_train.core.families import (
    FAMILY_LABELS,
    FAMILY_NAMES,
    CheckpointFacts,
    Prediction,
    detect_checkpoint,
)
from lora_train.core.model_folders import detect_folder
from lora_train.core.noise_settings import PredictionChoice, ZeroTerminalSnr
from lora_train.core.tensor_infos import TensorFile, TensorInfo, tensor_bytes
from lora_train.core.tensorfiles import read_tensor_file

_SD2_TELLTALE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_LARGEST_EPSILON_STD = 0.09
"""Forge tells Stable Diffusion 2's v-prediction models by the spread of this one tensor."""
_LARGEST_TELLTALE_BYTES = 2**20
"""It has 640 numbers; a file that is no model may call gigabytes by its name."""

_YAML_V = re.compile(
    r"^[ \t]*(parameterization:[ \t]*[\"']?v[\"']?|target:[ \t]*\S+\.VScaling)[ \t]*(#.*)?$", re.MULTILINE
)
"""Stable Diffusion's configs say it in the first way, SDXL's original ones in the second."""
_LARGEST_YAML_BYTES = 2**20
_NUMBERS = {"F16": "e", "F32": "f", "F64": "d"}


def read_checkpoint(path: Path) -> CheckpointFacts:
    """What the base model at `path` (a file or a diffusers folder) is. Raises ModelError for what can't be read."""
    return detect_folder(path) if path.is_dir() else facts_of(read_tensor_file(path))


def facts_of(file: TensorFile) -> CheckpointFacts:
    """`detect_checkpoint`, with the prediction of SD2, which one tensor tells, and what a yaml beside the file says."""
    facts = detect_checkpoint(file.tensors)
    prediction = facts.prediction
    if facts.family in ("sd2", "sd2-inpaint") and prediction == "unknown":
        prediction = _sd2_prediction(file)
    if _yaml_says_v(file.path):
        prediction = "v_prediction"
    return msgspec.structs.replace(facts, prediction=prediction)


def require_supported(facts: CheckpointFacts, path: Path) -> None:
    """Raise ModelError with a sentence on what `path` is unless it can be trained on."""
    if facts.family in FAMILY_LABELS:
        if facts.prediction == "unknown":
            raise ModelError(
                f"{path} is {FAMILY_NAMES[facts.family]} that predicts neither epsilon nor v (such as an EDM model); "
                "such models can't be trained here.",
                "Choose a checkpoint that predicts epsilon or v.",
            )
        return
    trained = "Stable Diffusion 1.x, Stable Diffusion 2.x or SDXL"
    if facts.family == "unknown":
        raise ModelError(f"{path} can't be trained on: {facts.reason}.", f"Choose a checkpoint of {trained}.")
    raise ModelError(
        f"{path} is {FAMILY_NAMES[facts.family]}, which can't be trained here.", f"Choose a checkpoint of {trained}."
    )


def with_choices(
    facts: CheckpointFacts, prediction: PredictionChoice, zero_terminal_snr: ZeroTerminalSnr
) -> CheckpointFacts:
    """The facts as training uses them: what a person chose instead of what was found.

    Raises ConfigError where zero-terminal SNR is asked of a model that predicts epsilon: from pure noise alone it
    could tell nothing (Lin et al. 2023, section 3.1).
    """
    chosen = facts.prediction if prediction == "auto" else cast("Prediction", prediction)
    is_v = chosen == "v_prediction"
    if zero_terminal_snr == "on" and not is_v:
        raise ConfigError(["Zero terminal SNR: this model predicts epsilon; only v-prediction models can learn so."])
    is_zero = zero_terminal_snr == "on" or (zero_terminal_snr == "auto" and facts.zero_terminal_snr and is_v)
    return msgspec.structs.replace(facts, prediction=chosen, zero_terminal_snr=is_zero)


def _sd2_prediction(file: TensorFile) -> Prediction:
    telltale = file.tensors.get(_SD2_TELLTALE)
    if telltale is None or not 0 < telltale.nbytes <= _LARGEST_TELLTALE_BYTES:
        return "epsilon"
    numbers = _numbers(file.path, telltale)
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((number - mean) * (number - mean) for number in numbers) / len(numbers))
    return "v_prediction" if deviation > _SD2_LARGEST_EPSILON_STD else "epsilon"


def _numbers(path: Path, info: TensorInfo) -> list[float]:
    """The values of a small tensor. Raises ModelError for number formats without a plain meaning."""
    raw, dtype = bytes(tensor_bytes(path, info)), info.dtype
    if dtype == "BF16":  # the upper half of a 32-bit float
        raw, dtype = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2)), "F32"
    if dtype not in _NUMBERS:
        raise ModelError(f"{path}: {info.name} has the number format {info.dtype}, which can't be read.")
    kind = _NUMBERS[dtype]
    return list(struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw))


def _yaml_says_v(checkpoint: Path) -> bool:
    """Whether the original (LDM) config beside the file, under the same name with `.yaml`, says v-prediction."""
    path = checkpoint.with_suffix(".yaml")
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_YAML_BYTES).decode("utf-8")
        return _YAML_V.search(text.replace("\r\n", "\n")) is not None
    except (OSError, UnicodeDecodeError):
        return False
