"""Makes a demo model from nothing: `python tests/assets/make_demo_model.py --out DIR`.

In the order that works (about an hour on one CPU core):

    VAE           the encoder is set analytically, the decoder trained to invert it
    text encoder  warmed up with supervision; before that, shape and background stay at chance
    UNet          trained together with the text encoder on drawn pictures and their captions
    file          one fp16 checkpoint in the original layout, with its yaml and text-encoder config

Budgets are steps and all randomness is seeded, so the same machine makes the same model again.
`--smoke` goes through every stage in under a minute and makes a model that loads and draws noise.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo_diffusion import build_unet, train_jointly
from demo_judge import (
    evaluation_descriptions,
    generate,
    judge_pictures,
    percentages,
    save_sheet,
    train_judge,
)
from demo_text_encoder import build_text_encoder, load_tokenizer, warm_up
from demo_training import say
from demo_vae import build_vae, set_analytically, train_decoder
from original_layout import write_model


@dataclass(frozen=True)
class Budget:
    """How much work each stage does: pictures drawn, and optimizer steps."""

    vae_pictures: int = 600
    decoder_steps: int = 1200
    warm_up_steps: int = 600
    unet_pictures: int = 4000
    unet_steps: int = 2400
    judge_pictures: int = 5000
    judge_epochs: int = 6
    evaluated_pictures: int = 144


SMOKE = Budget(
    vae_pictures=50,
    decoder_steps=4,
    warm_up_steps=4,
    unet_pictures=60,
    unet_steps=3,
    judge_pictures=200,
    judge_epochs=1,
    evaluated_pictures=6,
)


def make_model(budget: Budget, folder: Path) -> dict[str, Any]:
    """Train every part and write the checkpoint; returns unet, vae, text_encoder and tokenizer."""
    vae = build_vae(seed=0)
    set_analytically(vae, pictures=budget.vae_pictures, seed=0)
    train_decoder(vae, steps=budget.decoder_steps, seed=3)

    tokenizer = load_tokenizer()
    text_encoder = build_text_encoder(seed=0)
    warm_up(text_encoder, tokenizer, steps=budget.warm_up_steps, seed=8)

    unet = build_unet(seed=0, context_width=text_encoder.config.hidden_size)
    train_jointly(
        unet,
        text_encoder,
        tokenizer,
        vae,
        pictures=budget.unet_pictures,
        steps=budget.unet_steps,
        seed=2,
    )
    path = write_model(folder, unet=unet, vae=vae, text_encoder=text_encoder)
    say(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB; diffusers reads the same weights")
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}


def evaluate(parts: dict[str, Any], budget: Budget, folder: Path) -> None:
    """Print how often the model draws what it is told, and write `sheet.png` to look at."""
    judge = train_judge(pictures=budget.judge_pictures, epochs=budget.judge_epochs, seed=5)
    descriptions = evaluation_descriptions(budget.evaluated_pictures)
    pictures = generate(parts, descriptions, seed=1)
    save_sheet(pictures, folder / "sheet.png")
    shares = judge_pictures(judge, pictures, descriptions)
    say(f"as told, of {len(pictures)} pictures: {percentages(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a demo model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--smoke", action="store_true", help="a handful of steps of every stage")
    parser.add_argument("--evaluate", action="store_true", help="judge the model's pictures as well")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    budget = SMOKE if arguments.smoke else Budget()
    parts = make_model(budget, arguments.out)
    if arguments.evaluate:
        evaluate(parts, budget, arguments.out)


if __name__ == "__main__":
    main()
