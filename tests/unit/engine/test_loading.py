"""Base models of every layout against diffusers' own loader."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_train.core.errors import ModelError
from lora_train.engine.loading import BaseModel, load_base_model, load_vae
from lora_train.engine.random_model import SMALL, random_checkpoint, write_random_checkpoint

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("no_network")]

CPU = torch.device("cpu")
TEXT = "cond_stage_model.transformer."
VAE = "first_stage_model."
Tensors = dict[str, torch.Tensor]


def load(path: Path, dtype: torch.dtype = torch.float32, vae: Path | None = None) -> BaseModel:
    """Parts are loaded when they are wanted: all of them are wanted here."""
    model = load_base_model(path, vae_path=vae, device=CPU, dtype=dtype)
    parts_of(model)
    return model


def tensors_of_small() -> Tensors:
    return random_checkpoint(SMALL, dtype=torch.float32, seed=7)


def save(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> Path:
    path = folder / name
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def parts_of(model: BaseModel) -> dict[str, Any]:
    return {"unet": model.unet, "vae": model.vae, "text": model.text_encoders[0]}


def weights_of(model: BaseModel) -> Tensors:
    return {
        f"{part}.{name}": tensor
        for part, module in parts_of(model).items()
        for name, tensor in module.named_parameters()
    }


def assert_same_weights(one: BaseModel, other: BaseModel) -> None:
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@torch.no_grad()
def outputs(unet: Any, vae: Any, text_encoder: Any) -> list[torch.Tensor]:
    """What the three parts make of fixed random inputs."""
    generator = torch.Generator().manual_seed(4)
    dtype = next(unet.parameters()).dtype
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 64, generator=generator)
    pixels = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    return [
        unet(latents.to(dtype), torch.tensor([3, 900]), text.to(dtype)).sample,
        vae.encode(pixels).latent_dist.mean,
        vae.decode(latents).sample,
        text_encoder(ids).last_hidden_state,
    ]


def assert_same_outputs(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def diffusers_folder(
    small_model: BaseModel, make_pipeline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small model as diffusers saves it."""
    folder = tmp_path_factory.mktemp("diffusers")
    make_pipeline(small_model).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def configs_alone(diffusers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder without any weights."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copytree(
        diffusers_folder,
        folder,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.safetensors", "*.bin"),
    )
    return folder


# --- single files ---


def test_equal_to_from_single_file(small_model: BaseModel, small_checkpoint: Path, configs_alone: Path) -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    local: dict[str, Any] = {"config": str(configs_alone), "local_files_only": True}
    path = str(small_checkpoint)
    pipeline = StableDiffusionPipeline.from_single_file(path, safety_checker=None, **local)
    theirs = outputs(
        UNet2DConditionModel.from_single_file(path, subfolder="unet", **local),
        AutoencoderKL.from_single_file(path, subfolder="vae", **local),
        pipeline.text_encoder,
    )
    assert_same_outputs(outputs(*parts_of(small_model).values()), theirs)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_number_formats(stored: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_random_checkpoint(path, SMALL, dtype=stored, seed=7)
    model = load(path)
    own = model.unet.conv_in.weight
    their = load_file(path)["model.diffusion_model.input_blocks.0.0.weight"]
    assert their.dtype == stored
    assert torch.equal(own, their.float())
    assert all(weight.dtype == torch.float32 for weight in weights_of(model).values())
    half = load(path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.unet.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.text_encoders[0].parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.vae.parameters()} == {torch.float32}


def test_parts_come_and_go(small_checkpoint: Path, other_vae: Any, tmp_path: Path) -> None:
    """What is not wanted is not read, and a part that is let go comes back as it was."""
    tensors = {name: own for name, own in tensors_of_small().items() if not name.startswith((VAE, TEXT))}
    path = save(tmp_path, tensors)
    model = load_base_model(path, vae_path=None, device=CPU, dtype=torch.float32)
    assert model.unet is model.unet
    with pytest.raises(ModelError, match="no text encoder"):
        _ = model.text_encoders[0]
    whole = load(small_checkpoint)
    vae, text = whole.vae, whole.text_encoders[0]
    whole.drop_vae()
    whole.drop_text_encoders()
    assert whole.vae is not vae
    assert torch.equal(whole.vae.decoder.conv_in.weight, vae.decoder.conv_in.weight)
    assert whole.text_encoders[0] is not text


def test_parts_are_frozen_and_nothing_is_left_on_meta(small_model: BaseModel) -> None:
    for part in parts_of(small_model).values():
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        tensors = [*part.parameters(), *part.buffers()]
        assert all(tensor.device == CPU for tensor in tensors)


def test_ema_weights_are_not_taken(small_model: BaseModel, tmp_path: Path) -> None:
    """Training files carry a second UNet as model_ema.*, its names without dots."""
    tensors = tensors_of_small()
    for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
        tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = torch.zeros(1)
    tensors["model_ema.decay"] = torch.tensor(0.999)
    tensors["model_ema.num_updates"] = torch.tensor(5)
    assert_same_weights(load(save(tmp_path, tensors)), small_model)


def test_text_encoder_names_without_text_model(small_model: BaseModel, tmp_path: Path) -> None:
    tensors = {name.replace(TEXT + "text_model.", TEXT): tensor for name, tensor in tensors_of_small().items()}
    assert not any("text_model" in name for name in tensors)
    assert_same_weights(load(save(tmp_path, tensors)), small_model)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_ckpt_with_a_trainers_belongings(
    small_model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    """As Lightning writes them: the callbacks' classes are named in the pickle, but must not be needed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    stub = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = stub  # type: ignore[attr-defined]
    path = tmp_path / "model.ckpt"
    with monkeypatch.context() as installed:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            installed.setitem(sys.modules, parent, types.ModuleType(parent))
        installed.setitem(sys.modules, name, module)
        content = {
            "epoch": 3,
            "global_step": 1000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": tensors_of_small(),
            "callbacks": {stub: {"best_model_score": torch.tensor(0.5), "best_model_path": ""}},
            "optimizer_states": [],
        }
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same_weights(load(path), small_model)


def test_strided_tensors_of_a_ckpt(small_model: BaseModel, tmp_path: Path) -> None:
    """torch.save keeps strides and shared storages; safetensors has neither."""
    tensors = tensors_of_small()
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "attn2.to_k" in name:
            tensors[name] = tensor.t().contiguous().t()
    torch.save(tensors, tmp_path / "model.ckpt")
    assert_same_weights(load(tmp_path / "model.ckpt"), small_model)


# --- diffusers folders ---


def test_diffusers_folder(small_model: BaseModel, diffusers_folder: Path, tmp_path: Path) -> None:
    model = load(diffusers_folder)
    assert_same_weights(model, small_model)
    assert_same_outputs(outputs(*parts_of(model).values()), outputs(*parts_of(small_model).values()))
    assert model.prediction == "epsilon"
    assert model.tokenizers[0]("a cat").input_ids == [49406, 320, 2368, 49407]


def test_diffusers_folder_of_pickles(small_model: BaseModel, configs_alone: Path, tmp_path: Path) -> None:
    """Names as transformers 4 writes them, with `text_model.`, and the VAE's as before 2023."""
    folder = tmp_path / "model"
    shutil.copytree(configs_alone, folder)
    text = getattr(small_model.text_encoders[0], "text_model", small_model.text_encoders[0])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    torch.save(small_model.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    torch.save(
        {f"text_model.{name}": own for name, own in text.state_dict().items()},
        folder / "text_encoder" / "pytorch_model.bin",
    )
    torch.save(
        {old_name(name): own for name, own in small_model.vae.state_dict().items()},
        folder / "vae" / "diffusion_pytorch_model.bin",
    )
    assert_same_weights(load(folder), small_model)


def test_v_prediction_of_a_folder(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(diffusers_folder, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "prediction_type": "v_prediction"}), encoding="utf-8")
    assert load(folder).prediction == "v_prediction"


def test_incomplete_folder(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(diffusers_folder, folder)
    for path in (folder / "vae").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError) as error:
        load(folder)
    assert f"{folder / 'vae'} has no weights" in error.value.message
    (folder / "unet" / "config.json").write_bytes(b"{")
    with pytest.raises(ModelError) as error:
        load(folder)
    assert str(folder / "unet" / "config.json") in error.value.message


def test_a_folder_without_a_text_encoder(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(diffusers_folder, folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ModelError) as error:
        load(folder)
    assert error.value.message.count("text_encoder") == 1, "the file is named once, without Python's errno"
    assert error.value.hint


# --- a separate VAE ---


def _other_vae() -> Tensors:
    """The VAE of another random model, by its original names without prefix."""
    return {
        name.removeprefix(VAE): tensor
        for name, tensor in random_checkpoint(SMALL, dtype=torch.float32, seed=8).items()
        if name.startswith(VAE)
    }


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same VAE, taken out of a whole checkpoint."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    write_random_checkpoint(path, SMALL, dtype=torch.float32, seed=8)
    return load(path).vae


def _vae_files(folder: Path, kind: str, diffusers_vae: Any) -> Path:
    plain = _other_vae()
    if kind == "original":
        return save(folder, plain, "vae.safetensors")
    if kind == "with prefix":
        return save(folder, {VAE + name: own for name, own in plain.items()}, "vae.safetensors")
    if kind == "pickle":
        torch.save({"state_dict": plain}, folder / "vae.vae.pt")
        return folder / "vae.vae.pt"
    if kind == "whole checkpoint":
        return save(folder, random_checkpoint(SMALL, dtype=torch.float32, seed=8), "whole.safetensors")
    return save(folder, diffusers_vae.state_dict(), "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("kind", ["original", "with prefix", "pickle", "whole checkpoint", "diffusers"])
def test_separate_vae(kind: str, other_vae: Any, small_checkpoint: Path, tmp_path: Path) -> None:
    model = load(small_checkpoint, vae=_vae_files(tmp_path, kind, other_vae))
    ours, theirs = dict(model.vae.named_parameters()), dict(other_vae.named_parameters())
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert model.vae_scale == 0.18215


def test_file_that_is_no_vae(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": torch.zeros(1)}, "not a vae.safetensors")
    with pytest.raises(ModelError, match=r"not a vae\.safetensors is not a VAE"):
        load_vae(path, CPU)


# --- the yaml beside the file ---


def _yaml(unet: str = "", params: str = "", text_folder: str = "") -> str:
    return (
        "model:\n  params:\n    scale_factor: 0.2\n"
        f"{params}    unet_config:\n      params:\n        model_channels: 32\n{unet}"
        f"    cond_stage_config:\n      params:\n        version: '{text_folder}'\n"
    )


def test_heads_come_from_the_yaml(small_checkpoint: Path, tmp_path: Path) -> None:
    """Heads can't be told from tensor shapes; the text folder is relative to the yaml."""
    path = tmp_path / "model.safetensors"
    shutil.copyfile(small_checkpoint, path)
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(
        json.dumps({"num_attention_heads": 4, "hidden_act": "gelu"}), encoding="utf-8"
    )
    text = _yaml("        num_heads: 2\n", "    parameterization: v\n", "./encoder")
    path.with_suffix(".yaml").write_text(text, encoding="utf-8")
    model = load(path)
    assert model.unet.config.attention_head_dim == 2
    assert model.text_encoders[0].config.num_attention_heads == 4
    assert model.text_encoders[0].config.hidden_act == "gelu"
    assert (model.prediction, model.vae_scale) == ("v_prediction", 0.2)

    without = load(small_checkpoint)
    assert without.unet.config.attention_head_dim == 8
    assert without.text_encoders[0].config.num_attention_heads == 1
    assert (without.prediction, without.vae_scale) == ("epsilon", 0.18215)
    assert_same_weights(model, without)
    pairs = zip(outputs(*parts_of(model).values()), outputs(*parts_of(without).values()), strict=True)
    unet, encoded, decoded, text_states = [torch.equal(one, other) for one, other in pairs]
    assert (unet, encoded, decoded, text_states) == (False, True, True, False)


@pytest.mark.parametrize("content", ["model: [", "model: 5", "- a", "model:\n  params:\n    x: 1"])
def test_damaged_yaml_is_named(content: str, small_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copyfile(small_checkpoint, path)
    path.with_suffix(".yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.yaml is not an LDM config"):
        load(path)


def test_marker_of_v_prediction(tmp_path: Path) -> None:
    """Forge's and others' sign in the file itself."""
    path = save(tmp_path, {**tensors_of_small(), "v_pred": torch.zeros(0)})
    assert load(path).prediction == "v_prediction"


def test_demo_model_has_the_sizes_of_its_yaml(demo_model: BaseModel) -> None:
    assert demo_model.unet.config.attention_head_dim == 4
    assert demo_model.text_encoders[0].config.num_hidden_layers == 3
    assert (demo_model.native_resolution_px, demo_model.bucket_step_px) == (64, 8)
