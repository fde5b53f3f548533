"""diffusers' UNet without what costs time and changes nothing, for Stable Diffusion 1, 2 and XL.

Left out are divisions by 1, copies into a layout that the next layer undoes, tables that are the same every time, the
time embedding's SiLU in every residual block, products that can be one, and the inputs that autograd keeps of frozen
convolutions. As with a LoRA, `forward` is replaced on the instances (convolutions get another class): names and state
dicts stay, LoRAs and hooks work as before, and detached the model is what it was. Blocks are left alone, so gradient
checkpointing works as diffusers does it.

Legend: B pictures, T tokens (of a picture or a text), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn
from torch.utils import checkpoint

from lora_train.engine.activations import gated_gelu, is_compiling, layout_of, norm_silu
from lora_train.engine.frozen import convolved
from lora_train.engine.joint import JointProduct, SharedInput

Forward = Callable[..., torch.Tensor]


_PLAIN: dict[str, tuple[Any, ...]] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "cross_attention_norm": (None,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
}
"""What diffusers' configuration of a UNet may say, each block of it, for the mathematics here to be the UNet's own."""

_NOTHING = object()


class FastUnet:
    """A UNet made lean. One that is not built like Stable Diffusion's (see `is_plain`) is left as it is."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self._replaced: list[tuple[Any, str, Any]] = []
        self._convolutions: list[Any] = []

    def attach(self) -> None:
        """Make the UNet lean. Its LoRA is attached before: layers without one are joined. Twice is as once."""
        if self._replaced or not is_plain(self._unet):
            return
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.embeddings import Timesteps
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        resnets = self._all(ResnetBlock2D)
        blocks = self._all(BasicTransformerBlock)
        shifts = JointProduct([resnet.time_emb_proj for resnet in resnets])
        texts = JointProduct([layer for block in blocks for layer in (block.attn2.to_k, block.attn2.to_v)])
        self._replace(self._unet, "time_embed_act", lambda embedding: shifts(functional.silu(embedding)))
        self._replace(self._unet, "process_encoder_hidden_states", _text_forward(texts))
        for place, resnet in enumerate(resnets):
            self._replace(resnet, "forward", _resnet_forward(resnet, place))
        for place, block in enumerate(blocks):
            self._replace(block.attn1, "forward", _self_attention_forward(block.attn1))
            self._replace(block.attn2, "forward", _cross_attention_forward(block.attn2, 2 * place))
            self._replace(block.ff.net[0], "forward", _geglu_forward(block.ff.net[0]))
        for transformer in self._all(Transformer2DModel):
            self._replace(transformer, "_operate_on_continuous_inputs", _input_of(transformer))
            self._replace(transformer, "_get_output_for_continuous_inputs", _output_of(transformer))
        self._convolutions = [layer for layer in self._all(nn.Conv2d) if type(layer) is nn.Conv2d]
        for convolution in self._convolutions:
            convolution.__class__ = _LeanConv2d
        for waves in self._all(Timesteps):
            self._replace(waves, "forward", _waves_forward(waves, self._unet.device))

    def detach(self) -> None:
        """Give the UNet all of its own back."""
        for owner, name, own in reversed(self._replaced):
            del vars(owner)[name]
            if own is not _NOTHING:
                vars(owner)[name] = own
        self._replaced = []
        for convolution in self._convolutions:
            convolution.__class__ = nn.Conv2d
        self._convolutions = []

    def _all(self, kind: type) -> list[Any]:
        return [module for module in self._unet.modules() if isinstance(module, kind)]

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._replaced.append((owner, name, vars(owner).get(name, _NOTHING)))
        vars(owner)[name] = value


def is_plain(unet: Any) -> bool:
    """Whether the UNet has blocks, activations and attention as Stable Diffusion's, and nothing else."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    config = unet.config
    for name, allowed in _PLAIN.items():
        value = config.get(name, allowed[0])
        if any(each not in allowed for each in (value if isinstance(value, (list, tuple)) else [value])):
            return False
    return all(type(processor) is AttnProcessor2_0 for processor in unet.attn_processors.values())


# --- what replaces diffusers' own ---


def _text_forward(texts: JointProduct) -> Callable[..., SharedInput]:
    def forward(encoder_hidden_states: torch.Tensor, **_: Any) -> SharedInput:
        return texts(encoder_hidden_states)

    return forward


def _resnet_forward(resnet: Any, place: int) -> Forward:
    """`temb` is shared by all residual blocks, and this one's time projection is the one at `place`."""

    def forward(hidden: torch.Tensor, temb: SharedInput) -> torch.Tensor:
        shift = temb.output(place, resnet.time_emb_proj)
        inner = resnet.conv1(norm_silu(resnet.norm1, hidden)) + shift[:, :, None, None]
        inner = resnet.conv2(norm_silu(resnet.norm2, inner))
        return (hidden if resnet.conv_shortcut is None else resnet.conv_shortcut(hidden)) + inner

    return forward


class _LeanConv2d(nn.Conv2d):
    """A layer that got a LoRA, or gets one later, asks its class for what it does without."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) if is_compiling() else convolved(self, input)


def _self_attention_forward(attention: Any) -> Forward:
    def forward(hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        key, value = attention.to_k(hidden_states), attention.to_v(hidden_states)
        return _attend(attention, attention.to_q(hidden_states), key, value)

    return forward


def _cross_attention_forward(attention: Any, place: int) -> Forward:
    """The layer's keys and values are the products of the text at `place` and behind it."""

    def forward(hidden_states: torch.Tensor, encoder_hidden_states: SharedInput, **_: Any) -> torch.Tensor:
        key = encoder_hidden_states.output(place, attention.to_k)
        value = encoder_hidden_states.output(place + 1, attention.to_v)
        return _attend(attention, attention.to_q(hidden_states), key, value)

    return forward


def _attend(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(B, T, C). PyTorch's kernels sum up scores and take their softmax in float32, whatever the number format."""
    query, key, value = (each.unflatten(2, (attention.heads, -1)).transpose(1, 2) for each in (query, key, value))
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](mixed.transpose(1, 2).flatten(2))


def _geglu_forward(geglu: Any) -> Forward:
    return lambda hidden: gated_gelu(geglu.proj(hidden))


def _input_of(transformer: Any) -> Callable[[torch.Tensor], tuple[torch.Tensor, int]]:
    """How a picture becomes tokens (B, T, C): the norm's output gets the layout that the picture came in.

    Where the transformer's blocks are checkpointed this is too, which diffusers leaves out.
    """

    def tokens(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.permute(0, 2, 3, 1).flatten(1, 2)

    def tokens_of(picture: torch.Tensor) -> torch.Tensor:
        hidden = transformer.norm(picture).contiguous(memory_format=layout_of(picture))
        if isinstance(transformer.proj_in, nn.Linear):
            return transformer.proj_in(tokens(hidden))
        return tokens(transformer.proj_in(hidden))

    def forward(hidden_states: torch.Tensor) -> tuple[torch.Tensor, int]:
        if transformer.gradient_checkpointing and torch.is_grad_enabled():
            hidden: Any = checkpoint.checkpoint(tokens_of, hidden_states, use_reentrant=False)
        else:
            hidden = tokens_of(hidden_states)
        return hidden, hidden.shape[-1]

    return forward


def _output_of(transformer: Any) -> Forward:
    """How tokens become a picture again: in the layout that the picture came in, which is mostly no copy."""

    def forward(hidden_states: torch.Tensor, residual: torch.Tensor, height: int, width: int, **_: Any) -> torch.Tensor:
        def picture(hidden: torch.Tensor) -> torch.Tensor:
            placed = hidden.unflatten(1, (height, width)).permute(0, 3, 1, 2)
            return placed.contiguous(memory_format=layout_of(residual))

        if isinstance(transformer.proj_out, nn.Linear):
            return picture(transformer.proj_out(hidden_states)) + residual
        return transformer.proj_out(picture(hidden_states)) + residual

    return forward


def _waves_forward(waves: Any, device: torch.device) -> Forward:
    """Cosines and sines of numbers (N,) at falling frequencies: (N, C) float32 (Vaswani et al. 2017, section 3.5)."""
    half = waves.num_channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=device)
    frequencies = torch.exp(-math.log(10000) * steps / (half - waves.downscale_freq_shift))

    def forward(numbers: torch.Tensor) -> torch.Tensor:
        angles = numbers[:, None].float() * frequencies.to(numbers.device)
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)

    return forward
