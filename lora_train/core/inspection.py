"""What is in a model file, for a person to read: checkpoints, LoRAs, VAEs, embeddings, folders.

Only headers, single numbers and one small tensor of Stable Diffusion 2 are read.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal, cast

import msgspec

from lora_train.core.checkpoints import facts_of
from lora_train.core.errors import shown
from lora_train.core.families import FAMILY_NAMES, CheckpointFacts, guess_kind
from lora_train.core.lora_facts import LoraFacts, lora_facts
from lora_train.core.model_folders import detect_folder
from lora_train.core.tensorfiles import read_tensor_file


class Inspection(msgspec.Struct, frozen=True):
    """A model file or folder. `metadata` has its JSON texts parsed; `note` says what else it is."""

    path: str
    kind: Literal["checkpoint", "lora", "vae", "embedding", "diffusers folder", "unknown"]
    format: Literal["safetensors", "ckpt", "folder"]
    size_bytes: int
    tensor_count: int = 0
    dtypes: dict[str, int] = {}
    checkpoint: CheckpointFacts | None = None
    lora: LoraFacts | None = None
    metadata: dict[str, object] = {}
    note: str = ""


def inspect_file(path: Path, *, verify_hash: bool = False) -> Inspection:
    """Look into a model file, or the folder of a diffusers model.

    `verify_hash` reads a whole LoRA to compare its recorded hash. Raises ModelError when the file
    can't be read or wants to run code.
    """
    if path.is_dir():
        facts = detect_folder(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Inspection(str(path), "diffusers folder", "folder", size, checkpoint=facts)
    file = read_tensor_file(path)
    guess = guess_kind(file.tensors)
    is_checkpoint, is_lora = guess.kind == "checkpoint", guess.kind == "lora"
    return Inspection(
        str(path),
        guess.kind,
        file.format,
        path.stat().st_size,
        tensor_count=len(file.tensors),
        dtypes=dict(Counter(info.dtype for info in file.tensors.values()).most_common()),
        checkpoint=facts_of(file) if is_checkpoint else None,
        lora=lora_facts(file, verify_hash=verify_hash) if is_lora else None,
        metadata={key: _parsed(text) for key, text in file.metadata.items()},
        note="" if is_lora else guess.reason,
    )


def _parsed(text: str) -> object:
    if not text.startswith(("{", "[")):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: a number of too many digits
        return text


# --- words ---


def describe(inspection: Inspection) -> str:
    """An inspection as lines of a label and a value, the values under each other."""
    rows: list[tuple[str, str]] = [
        ("File", inspection.path),
        ("Kind", inspection.kind + (f" ({inspection.note})" if inspection.note else "")),
        ("Size", f"{inspection.size_bytes / 1e6:,.1f} MB, {inspection.format}"),
    ]
    if inspection.tensor_count:
        dtypes = ", ".join(f"{dtype} {count}" for dtype, count in inspection.dtypes.items())
        rows.append(("Tensors", f"{inspection.tensor_count:,} ({dtypes})"))
    if inspection.checkpoint:
        rows += _checkpoint_rows(inspection.checkpoint)
    if inspection.lora:
        rows += _lora_rows(inspection.lora)
    rows += [(_shortened(key), _shortened(value)) for key, value in sorted(inspection.metadata.items())]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{_printable(label):<{width}}  {_printable(value)}" for label, value in rows)


def _printable(text: str) -> str:
    """Without what could steer a terminal: a file's metadata may come from anybody."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _checkpoint_rows(facts: CheckpointFacts) -> list[tuple[str, str]]:
    unknown = "unknown"
    return [
        ("Family", f"{facts.family}: {facts.reason or FAMILY_NAMES[facts.family]}"),
        (
            "Prediction",
            facts.prediction + (", zero-terminal SNR" if facts.zero_terminal_snr else ""),
        ),
        ("UNet format", facts.unet_dtype or unknown),
        ("Input channels", str(facts.in_channels or unknown)),
        ("Model channels", str(facts.model_channels or unknown)),
        ("Text dimension", str(facts.cross_attention_dim or unknown)),
        ("Text encoder", _text_encoder_words(facts)),
        ("VAE", "yes" if facts.has_vae else "no"),
        ("EMA weights", "yes" if facts.has_ema else "no"),
    ]


def _text_encoder_words(facts: CheckpointFacts) -> str:
    if not facts.has_text_encoder:
        return "no"
    layouts = {
        "text_model": "yes",
        "bare": "yes, names without text_model",
        "open_clip": "yes, OpenCLIP",
    }
    return layouts[facts.text_encoder_layout] if facts.text_encoder_layout else "yes"


def _lora_rows(facts: LoraFacts) -> list[tuple[str, str]]:
    source = f" (by {facts.family_from})" if facts.family_from else ""
    rows = [
        ("Family", facts.family + source),
        ("Network", f"{', '.join(facts.network_types)}, {facts.naming} names"),
        ("Rank", _numbers(facts.ranks)),
        ("Alpha", _numbers(facts.alphas)),
        ("UNet modules", str(facts.unet_modules)),
        ("Text modules", _text_modules(facts)),
        ("Convolutions", f"{facts.convolution_modules} larger than 1x1"),
    ]
    if facts.other_modules:
        rows.append(("Other modules", str(facts.other_modules)))
    if facts.incomplete:
        more = f" and {len(facts.incomplete) - 3} more" if len(facts.incomplete) > 3 else ""
        rows.append(("Incomplete", "; ".join(facts.incomplete[:3]) + more))
    if facts.hash_is_right is not None:
        rows.append(("Hash", "right" if facts.hash_is_right else "WRONG: the file was changed"))
    return rows


def _text_modules(facts: LoraFacts) -> str:
    second = facts.second_text_encoder_modules
    return f"{facts.text_encoder_modules} and {second}" if second else str(facts.text_encoder_modules)


def _numbers(values: list[int] | list[float]) -> str:
    return ", ".join(f"{value:g}" for value in cast("list[float]", values)) or "none"


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown(" ".join(text.split()))
