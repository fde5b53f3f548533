"""What a training was made from and what computed it, in a report."""

from __future__ import annotations

from html import escape

from lora_train.report.facts import ReportFacts


def history_html(facts: ReportFacts) -> str:
    """Hashes and versions, or what of them is unknown."""
    rows: list[tuple[str, str]] = []
    if facts.made_from is not None:
        rows.append(("Dataset (BLAKE2b)", facts.made_from.fingerprint))
    versions = facts.versions
    if versions is not None:
        rows += [
            ("Base model (SHA-256)", versions.base_model_sha256),
            ("VAE (SHA-256)", versions.vae_sha256),
            ("Device", versions.device),
            ("Processor", versions.processor),
            ("CPU threads", str(versions.cpu_threads or "")),
            ("Platform", versions.platform),
            ("Versions", ", ".join(f"{name} {text}" for name, text in versions.packages.items())),
            ("Resumed", "with other versions than it began with" if versions.is_mixed else ""),
        ]
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    if not told:
        return '<p class="quiet">Unknown: an earlier release trained it, which noted no hashes and versions.</p>'
    promise = (
        "With the same pictures, captions, settings, base model, versions and number of threads, a CPU makes the same "
        "bytes again; a CUDA card does with deterministic kernels switched on in both trainings, else nearly the same."
    )
    return f'<dl>{told}</dl><p class="quiet">{promise}</p>'
