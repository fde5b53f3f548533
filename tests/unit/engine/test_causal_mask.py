"""The text encoders' mask against that of the installed transformers, where it has one of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_train.engine.causal_mask import causal_mask, give_causal_mask

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_token_sees_itself_and_what_is_before(dtype: torch.dtype) -> None:
    mask = causal_mask(torch.Size((2, 5)), dtype, torch.device("cpu"))
    assert mask.shape == (2, 1, 5, 5)
    assert mask.dtype == dtype
    for row in range(5):
        for column in range(5):
            wanted = 0 if column <= row else torch.finfo(dtype).min
            assert bool((mask[:, 0, row, column] == wanted).all())


def test_it_is_the_library_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.clip import modeling_clip

    library: Any = modeling_clip
    if not hasattr(library, "_make_causal_mask"):
        pytest.skip("this release of transformers has no such function")
    own = library._make_causal_mask
    monkeypatch.setattr(library, "_make_causal_mask", own)  # put back afterwards
    give_causal_mask()
    assert library._make_causal_mask is causal_mask
    for dtype in (torch.float32, torch.float16):
        arguments = torch.Size((3, 77)), dtype, torch.device("cpu")
        assert torch.equal(causal_mask(*arguments), own(*arguments))
