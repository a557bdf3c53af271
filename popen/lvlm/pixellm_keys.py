"""Names of the released PixelLM's weights and what they are called in popen."""

import re

_DECODER, _PROMPTS = r"model\.mask_decoder\.", r"model\.prompt_encoder\."
_FEED_FORWARD = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}

RENAMED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"lm_head\.weight", "backbone.lm_head.weight"),
        (r"model\.((?:embed_tokens|layers|norm)\..+)", r"backbone.model.language_model.\1"),
        (r"model\.mm_projector\.(.+)", r"backbone.model.multi_modal_projector.\1"),
        (r"model\.out_mm_projector\.(.+)", r"pixel_encoder.project.\1"),
        (r"model\.image_feature_neck\.(.+)", r"pixel_encoder.neck.\1"),
        (r"model\.text_hidden_fcs\.0\.(.+)", r"codebook.project.\1"),
        (
            _PROMPTS + r"pe_layer\.positional_encoding_gaussian_matrix",
            "mask_decoder.prompts.positions.positional_embedding",
        ),
        (_PROMPTS + r"no_mask_embed\.weight", "mask_decoder.prompts.no_mask.weight"),
        (
            _DECODER + r"pe1\.positional_encoding_gaussian_matrix",
            "mask_decoder.wide_positions.positional_embedding",
        ),
        (
            _DECODER + r"transformer\.(\d+\..*?)norm(\d|_final_attn)\.(.+)",
            r"mask_decoder.transformers.\1layer_norm\2.\3",
        ),
        (_DECODER + r"transformer\.(.+)", r"mask_decoder.transformers.\1"),
        (_DECODER + r"((?:iou_token|mask_tokens|level_embed)\.weight)", r"mask_decoder.\1"),
        (_DECODER + r"output_upscaling\.(.+)", r"mask_decoder.upscale.\1"),
        (_DECODER + r"upsample_2x\.(.+)", r"mask_decoder.widen.\1"),
        *(
            (_DECODER + rf"output_hypernetworks_mlps\.0\.layers\.{n}\.(.+)", rf"mask_decoder.hypernetwork.{name}.\1")
            for n, name in _FEED_FORWARD.items()
        ),
    )
)
UNREAD = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # follows from the configuration
    rf"|{_PROMPTS}(?:point_embeddings\.\d|not_a_point_embed|mask_downscaling\.\d)\..+"  # prompts PixelLM never gives
    rf"|{_DECODER}output_hypernetworks_mlps\.[1-3]\..+"  # of the three masks it never draws
    rf"|{_DECODER}iou_prediction_head\..+"  # never trained, never used
)


def popen_name(released: str) -> str | None:
    """What a released weight is called in popen; None where the released forward never reads it.

    Raises:
        KeyError: PixelLM has no weight of that name.
    """
    if UNREAD.fullmatch(released):
        return None
    for pattern, new in RENAMED:
        if match := pattern.fullmatch(released):
            return match.expand(new)
    raise KeyError(released)
