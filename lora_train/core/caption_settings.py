"""What writes captions, and how: one more part of the schema (see `core.config`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

CaptionerKind = Literal["wd14", "blip"]
CaptionPolicy = Literal["only where empty", "overwrite", "prepend", "append"]
CaptionDevice = Literal["auto", "cpu", "cuda"]


class CaptionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Without any of the first three, the best that is there is taken. Scores and thresholds are 0 to 1."""

    use_blip: Annotated[
        bool,
        Meta(title="Use BLIP for caption", description="A sentence: good for photographs."),
    ] = False
    use_deepbooru: Annotated[
        bool,
        Meta(title="Use deepbooru for caption", description="Tags, by the WebUI's own DeepDanbooru."),
    ] = False
    use_wd14: Annotated[
        bool,
        Meta(title="Use WD14 tagger for caption", description="Tags: good for drawings, and fair for photographs."),
    ] = False
    policy: Annotated[
        CaptionPolicy,
        Meta(title="Caption policy", description="What becomes of captions that pictures have already."),
    ] = "only where empty"
    wd14_model: Annotated[
        str,
        Meta(
            title="WD14 model folder",
            description="With model.onnx and selected_tags.csv, or a name on the hub; empty: the downloaded one.",
        ),
    ] = ""
    wd14_threshold: Annotated[
        float, Meta(title="General threshold", description="Tags below this score are left out.", ge=0, le=1)
    ] = 0.35
    wd14_character_threshold: Annotated[
        float, Meta(title="Character threshold", description="The same for names of characters.", ge=0, le=1)
    ] = 0.85
    wd14_rating: Annotated[
        bool, Meta(title="Rating tag", description="Adds the likeliest rating (general, sensitive ...).")
    ] = False
    underscores_to_blanks: Annotated[
        bool, Meta(title="Underscores to blanks", description="long_hair becomes long hair, as prompts have it.")
    ] = True
    excluded_tags: Annotated[str, Meta(title="Excluded tags", description="Comma list; these are never written.")] = ""
    sort_by_score: Annotated[
        bool, Meta(title="Sort tags by score", description="The surest first; else in the model's order.")
    ] = True
    max_tags: Annotated[
        int, Meta(title="Most tags", description="At most this many tags a picture; 0 is no limit.", ge=0, le=1000)
    ] = 0
    blip_model: Annotated[
        str,
        Meta(
            title="BLIP model folder",
            description="An image-to-text model of transformers, or its name on the hub; empty: the downloaded one.",
        ),
    ] = ""
    blip_prompt: Annotated[
        str, Meta(title="Caption begins with", description="The model goes on from these words.")
    ] = ""
    blip_beams: Annotated[int, Meta(title="Beams", description="More are slower and a little better.", ge=1, le=16)] = 1
    blip_min_length: Annotated[int, Meta(title="Caption min length", description="Tokens.", ge=1, le=200)] = 24
    blip_max_length: Annotated[int, Meta(title="Caption max length", description="Tokens.", ge=1, le=256)] = 48
    device: Annotated[
        CaptionDevice,
        Meta(title="Caption device", description="auto takes the card where it has room, else the processor."),
    ] = "auto"
