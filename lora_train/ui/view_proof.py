"""Whether a published LoRA was read back and works, as HTML: a tick with the facts, or the reason why not."""

from __future__ import annotations

from lora_train.app.snapshot import LoraEntry, TrainSnapshot
from lora_train.core.proofs import Fact, Proof
from lora_train.ui.html import attributes_text, badge, job_file_url, paragraph, post_button, sentence, value, words


def proof_html(train: TrainSnapshot, lora: LoraEntry, token: str) -> str:
    """Of the LoRA's published copy; empty where there is none."""
    proving = lora.proving
    if proving is None:
        return ""
    again = post_button("Prove again", "loras/prove", {"job": train.job, "lora": lora.file})
    if proving.state == "proving":
        return paragraph(words("The copy is being read back and drawn with."), "train-tools-quiet")
    if proving.state == "unproven":
        return post_button("Prove", "loras/prove", {"job": train.job, "lora": lora.file})
    if proving.proof is None:
        told = paragraph(words("The proof could not be made:"), "train-tools-warning")
        return f"{told}{paragraph(sentence(proving.problem))}{again}"
    proof = proving.proof
    if proof.reason:
        reason = paragraph(sentence(proof.reason), "train-tools-error")
        return f"{badge('not proven', 'error')}{reason}{paragraph(sentence(proof.hint))}{_facts(proof, lora)}{again}"
    tick = f'<span class="train-tools-tick" aria-hidden="true">✓</span> {words("Proven in models/Lora")}'
    return _details(tick, proof, lora, _pictures(train, proof, token))


def _details(summary: str, proof: Proof, lora: LoraEntry, more: str) -> str:
    key = attributes_text({"data-key": f"proof {lora.file}"})
    return f'<details class="train-tools-proof"{key}><summary>{summary}</summary>{_facts(proof, lora)}{more}</details>'


def _facts(proof: Proof, lora: LoraEntry) -> str:
    prompt = f"<li>{words('For the prompt:')} {value(lora.prompt)}</li>" if lora.prompt else ""
    return f'<ul class="train-tools-proof-facts">{"".join(map(_fact, proof.facts))}{prompt}</ul>'


def _fact(fact: Fact) -> str:
    told = f"{words(f'{fact.name}:')} {value(fact.value)}" if fact.value else words(fact.name)
    return f"<li>{told}</li>"


def _pictures(train: TrainSnapshot, proof: Proof, token: str) -> str:
    """Without and with the LoRA, side by side."""
    figures = ""
    for file, weight in zip(proof.pictures, ("0", "1"), strict=False):
        image = attributes_text({"src": job_file_url(train.job, file, token), "alt": file.rpartition("/")[2]})
        caption = f"<figcaption>{words('Weight')} {value(weight)}</figcaption>"
        figures += f'<figure class="train-tools-pair"><img loading="lazy"{image}>{caption}</figure>'
    return f'<div class="train-tools-pairs">{figures}</div>' if figures else ""
