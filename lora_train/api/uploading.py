"""How much may be uploaded at once."""

from __future__ import annotations

from lora_train.api.shapes import Upload

UPLOAD_LIMIT_BYTES = 64 * 1024 * 1024
"""Of one picture, caption or archive."""
UPLOAD_BODY_LIMIT_BYTES = 96 * 1024 * 1024
"""Room for the largest file in base64, which is a third longer."""


def within_limit(files: list[Upload]) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Name and content of the files that are not too large, and a sentence for each of the others."""
    taken: list[tuple[str, bytes]] = []
    problems: list[str] = []
    for file in files:
        if problem := too_large(file.name, file.content):
            problems.append(problem)
        else:
            taken.append((file.name, file.content))
    return taken, problems


def too_large(name: str, content: bytes) -> str:
    """A sentence for a file over the limit."""
    if len(content) <= UPLOAD_LIMIT_BYTES:
        return ""
    return f"{name} has {len(content) / 2**20:.0f} MB; at most 64 MB can be uploaded."
