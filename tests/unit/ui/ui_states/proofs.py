"""The proof of a published LoRA: none, at work, proven, refuted, failed."""

from __future__ import annotations

from typing import get_args

from lora_train.app.snapshot import Proving
from lora_train.core.proofs import Fact, FactName, Proof
from lora_train.ui.view_proof import proof_html
from ui_states.makers import make_lora, make_train


def proof_states() -> dict[str, str]:
    facts = tuple(
        Fact(name, "4" if name in ("Rank", "Layers", "Base models", "Drawn by") else "") for name in get_args(FactName)
    )
    pictures = ("samples/proof/Cat-v1-w0.png", "samples/proof/Cat-v1-w1.png")
    good = Proof(published="/Lora/Cat-v1.safetensors", tensors_sha256="0" * 64, facts=facts, pictures=pictures)
    bad = Proof(
        published="/Lora/Cat-v1.safetensors",
        tensors_sha256="0" * 64,
        facts=facts[:2],
        reason="At weight 1 it draws an empty picture.",
        hint="Publish it again.",
    )
    states = {
        "not published": None,
        "unproven": Proving("unproven"),
        "proving": Proving("proving", job="j"),
        "proven": Proving("proven", good),
        "refuted": Proving("refuted", bad),
        "failed": Proving("failed", problem="The card ran out of memory. Close other programs."),
    }
    train = make_train("finished")
    return {
        f"proof {name}": proof_html(train, make_lora("Cat-v1", 1620, published="Cat-v1", proving=proving), "T")
        for name, proving in states.items()
    }
