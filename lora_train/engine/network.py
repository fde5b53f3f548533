"""The LoRA network: y = W x + b + (alpha / rank) * up(down(x)) on chosen layers of a frozen model.

A network is attached to a model and detached again; detached, the model is what it was, bit for bit. The layer's
`forward` is replaced on the instance, so names, types and state dicts of the model never change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_train.core.lora_files import ALPHA, DOWN, UP
from lora_train.core.ranks import Ranks
from lora_train.core.seeds import derive_seed
from lora_train.engine import fused
from lora_train.engine.dropout import SHIFTS, DropoutRates, LayerMasks, draw_masks
from lora_train.engine.flat import FlatPart
from lora_train.engine.ldm_names import unet_module_name
from lora_train.engine.network_protocol import Draw


class Target(NamedTuple):
    """A layer that gets a LoRA.

    part        "unet", "text_encoder" or "text_encoder_2"
    name        its dotted diffusers name
    file_name   its name in LoRA files where that is not kohya's prefix for the part and `name` with underscores
    is_fused    OpenCLIP keeps q, k and v in one: Automatic1111 applies their LoRAs, and that of the attention's
                output, only where all four are there
    """

    part: str
    name: str
    layer: nn.Linear | nn.Conv2d
    file_name: str = ""
    is_fused: bool = False


class LoraLayer(nn.Module):
    """Low-rank change of one layer: Linear (.., in) -> (.., out), Conv2d (B, in, h, w) -> (B, out, h', w').

    `down` is drawn from kaiming uniform (a = sqrt 5), `up` starts at zero (Hu et al. 2021), both float32.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha = alpha
        self.scale = alpha / down.shape[0]
        self.masks: LayerMasks | None = None
        """What sits out the present step; None outside of training."""
        self.factors: fused.Factors | None = None
        """`down` and `up` as they are computed with, kept up to date elsewhere; None: cast for every call."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @staticmethod
    def new(layer: nn.Linear | nn.Conv2d, *, rank: int, alpha: float, seed: int) -> LoraLayer:
        """An untrained LoRA for `layer`, on its device."""
        if isinstance(layer, nn.Conv2d):
            down_shape = (rank, layer.in_channels, *layer.kernel_size)
            up_shape = (layer.out_channels, rank, 1, 1)
        else:
            down_shape, up_shape = (rank, layer.in_features), (layer.out_features, rank)
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(math.prod(down_shape[1:]))  # kaiming uniform with a = sqrt(5)
        down = torch.empty(down_shape).uniform_(-bound, bound, generator=generator)
        device = layer.weight.device
        return LoraLayer(down.to(device), torch.zeros(up_shape, device=device), alpha)

    def output(self, layer: nn.Linear | nn.Conv2d, x: torch.Tensor, multiplier: float) -> torch.Tensor:
        """The layer's output for the input x, with the LoRA's part in it."""
        grown = 1.0 if self.masks is None else self.masks.scale
        own = self.factors or fused.factors_of(layer, self.down.detach().to(x.dtype), self.up.detach().to(x.dtype))
        return fused.output(layer, x, (self.down, self.up), own, self.scale * multiplier * grown, self.masks)

    def delta_weight(self) -> torch.Tensor:
        """The same change as a weight, in the shape of the layer's own, for merging."""
        merged = self.up.flatten(1) @ self.down.flatten(1) * self.scale
        return merged.reshape(self.up.shape[0], *self.down.shape[1:])

    @torch.no_grad()
    def limit_norm(self, largest: float) -> None:
        """Shrink `down` and `up` by the same factor where the norm of `delta_weight` is over `largest`.

        kohya's "scale weight norms". |B A|^2 = trace((B'B)(A A')): two r x r products instead of the whole weight,
        and nothing is read back from the device.
        """
        down, up = self.down.flatten(1), self.up.flatten(1)
        squared = ((up.T @ up) * (down @ down.T)).sum() * self.scale**2
        shrink = (largest / squared.clamp(min=1e-30).sqrt()).clamp(max=1).sqrt()
        self.down.mul_(shrink)
        self.up.mul_(shrink)


class LoraNetwork(nn.Module):
    """One LoraLayer for each target: a `network_protocol.Network`.

    largest_norm: no layer's change may have a greater norm than this after a step; 0 is no limit.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Target, LoraLayer]],
        *,
        dropout: DropoutRates | None = None,
        largest_norm: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout or DropoutRates()
        self.largest_norm = largest_norm
        paired = list(pairs)
        self.targets = [target for target, _ in paired]
        self.layers = nn.ModuleList([lora for _, lora in paired])
        self.multiplier = 1.0
        self._ranks = [lora.rank for _, lora in paired]
        self._shifts = [derive_seed(0, "shift", target.part, target.name) % SHIFTS for target, _ in paired]

    @staticmethod
    def new(targets: Iterable[Target], ranks: Ranks, seed: int, **options: Any) -> LoraNetwork:
        """An untrained network; `options` are those of the class."""

        def layer(target: Target) -> LoraLayer:
            rank, alpha = rank_of(target, ranks)
            layer_seed = derive_seed(seed, "lora", target.part, target.name)
            return LoraLayer.new(target.layer, rank=rank, alpha=alpha, seed=layer_seed)

        return LoraNetwork(((target, layer(target)) for target in targets), **options)

    def attach(self) -> None:
        """Let every target's output include its LoRA. Raises RuntimeError when one has a LoRA already."""
        for target in self.targets:
            if "forward" in vars(target.layer):
                raise RuntimeError(f"{target.name} has a LoRA attached already")
        for target, lora in self.pairs():
            target.layer.forward = self._forward(target.layer, lora)

    def detach(self) -> None:
        """Give every target its own `forward` back."""
        for target in self.targets:
            vars(target.layer).pop("forward", None)

    def pairs(self) -> Iterator[tuple[Target, LoraLayer]]:
        for target, lora in zip(self.targets, self.layers, strict=True):
            assert isinstance(lora, LoraLayer)
            yield target, lora

    def flatten(self, parts: Iterable[str], dtype: torch.dtype) -> dict[str, FlatPart]:
        flat: dict[str, FlatPart] = {}
        for part in parts:
            own = [(target, lora) for target, lora in self.pairs() if target.part == part]
            if own:
                flat[part] = FlatPart(_named(own), dtype)
                _share(own, flat[part])
        return flat

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors by part and name: `unet.<dotted name>.down` and so on (not a file format)."""
        return dict(_named(self.pairs()))

    def file_parts(self) -> Iterator[tuple[Target, Mapping[str, torch.Tensor]]]:
        for target, lora in self.pairs():
            yield target, {DOWN: lora.down, UP: lora.up, ALPHA: torch.tensor(float(lora.alpha))}

    def before_batch(self, draw: Draw, places: int) -> None:
        if not any(self.dropout):
            return
        device = next(self.parameters()).device
        masks = draw_masks(self.dropout, self._ranks, self._shifts, draw, places, device)
        for (_, lora), own in zip(self.pairs(), masks, strict=True):
            lora.masks = own

    def after_step(self) -> None:
        for _, lora in self.pairs():
            lora.masks = None
            if self.largest_norm and lora.up.requires_grad:
                lora.limit_norm(self.largest_norm)

    def _forward(self, layer: nn.Linear | nn.Conv2d, lora: LoraLayer) -> Any:
        base_forward: Any = type(layer).forward

        def forward(x: torch.Tensor, *args: Any) -> torch.Tensor:
            if self.multiplier == 0:
                return base_forward(layer, x, *args)
            return lora.output(layer, x, self.multiplier)

        return forward


def _named(pairs: Iterable[tuple[Target, LoraLayer]]) -> dict[str, nn.Parameter]:
    """`unet.<dotted name>.down` and so on, in a fixed order."""
    found: dict[str, nn.Parameter] = {}
    for target, lora in pairs:
        found[f"{target.part}.{target.name}.down"] = lora.down
        found[f"{target.part}.{target.name}.up"] = lora.up
    return found


def _share(pairs: Iterable[tuple[Target, LoraLayer]], flat: FlatPart) -> None:
    """Let the layers compute with the copy of the flat part, and leave their gradients beside it."""
    copies, gradients = flat.split(flat.copy), flat.split(flat.copy_gradients)
    for target, lora in pairs:
        down, up = (f"{target.part}.{target.name}.{which}" for which in ("down", "up"))
        lora.factors = fused.factors_of(target.layer, copies[down], copies[up], (gradients[down], gradients[up]))


def kind_of(layer: nn.Linear | nn.Conv2d) -> str:
    """ "conv" for convolutions of more than one pixel, "linear" for everything that is a matrix product."""
    is_conv = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    return "conv" if is_conv else "linear"


_GROUPS = {"down": "input", "mid": "middle", "up": "output"}


def block_group(target: Target) -> str:
    """The group of blocks that a layer belongs to, as settings name it; "linear" for one outside of all."""
    if target.part != "unet":
        return "text_encoder"
    return _GROUPS.get(target.name.partition("_")[0], "linear")


def rank_of(target: Target, ranks: Ranks) -> tuple[int, float]:
    """(rank, alpha) of a layer: of convolutions their own, else of its block group, else the net dim's."""
    if kind_of(target.layer) == "conv":
        return ranks["conv"]
    return ranks.get(block_group(target), ranks["linear"])


def unet_targets(unet: Any, *, with_convolutions: bool) -> list[Target]:
    """The UNet layers that kohya's LoRA has: every Linear and 1x1 convolution of the attention blocks.

    These are 192 on SD1 and SD2, 722 on SDXL; with convolutions also all of the residual blocks and up/down samplers,
    278 and 788. SDXL's are called in files as in the original layout: WebUIs know some of them by these names only.
    """
    targets: list[Target] = []
    is_sdxl = unet.config.addition_embed_type == "text_time"
    for name, layer in unet.named_modules():
        in_attention = ".attentions." in name
        in_others = ".resnets." in name or "samplers." in name
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and (in_attention or (with_convolutions and in_others)):
            targets.append(Target("unet", name, layer, _original_file_name(unet, name) if is_sdxl else ""))
    return targets


def _original_file_name(unet: Any, name: str) -> str:
    attention = ["CrossAttn" in kind for kind in unet.config.down_block_types]
    return "lora_unet_" + unet_module_name(name, unet.config.layers_per_block, attention).replace(".", "_")


_TEXT_LEAVES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def text_encoder_targets(*text_encoders: Any) -> list[Target]:
    """Attention and MLP layers of a model's text encoders, named as `text_model.encoder...`: 6 for each layer.

    That is 72 on SD1, 138 on SD2, 72 and 192 on SDXL. transformers 5 dropped the prefix; WebUIs know the names with
    it only. SD1's and SD2's encoder is `lora_te_` in files, SDXL's are `lora_te1_` and `lora_te2_`.
    """
    targets: list[Target] = []
    for number, text_encoder in enumerate(text_encoders, start=1):
        part = "text_encoder" if number == 1 else f"text_encoder_{number}"
        prefix = "lora_te_" if len(text_encoders) == 1 else f"lora_te{number}_"
        is_open_clip = text_encoder.config.hidden_act == "gelu"
        core = getattr(text_encoder, "text_model", text_encoder)
        for own, layer in core.named_modules():
            if isinstance(layer, nn.Linear) and own.rpartition(".")[2] in _TEXT_LEAVES and ".layers." in own:
                name = f"text_model.{own}"
                is_fused = is_open_clip and ".self_attn." in own
                targets.append(Target(part, name, layer, prefix + name.replace(".", "_"), is_fused))
    return targets
