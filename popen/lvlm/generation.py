"""Generation over a key-value cache in which each picture is read once, however many questions are about it."""

import torch

from popen.lvlm.encoded_pictures import EncodedPictures
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.processing_popen import PopenProcessor


@torch.no_grad()
def generate(
    model: PopenForReasoningSegmentation,
    processor: PopenProcessor,
    prompts: list[list[int]],
    pictures: EncodedPictures,
    row_picture: list[int],
    max_new_tokens: int,
    **settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """New ids (B, n) and the states that predicted them (B, n, H).

    Prompts are padded between picture and question: rows are `[picture | padding | question]`, and the keys and values
    of the picture are those of one pass over `pictures`.

    Args:
        prompts: B token lists, what follows the processor's prefix. row_picture: which of `pictures` each is about.
        settings: of transformers' `generate`; greedy by default.
    """
    prefix, device, pad = list(processor.prefix_ids), model.device, processor.tokenizer.pad_token_id
    rows = torch.tensor(row_picture, device=device)
    cache, readable = read_prefix(model, prefix, pictures)
    cache.batch_select_indices(rows)
    width = max(map(len, prompts))
    padded = [[pad] * (width - len(own)) + own for own in prompts]
    ids = torch.tensor([prefix + own for own in padded], device=device)
    shown = torch.tensor([[1] * len(prefix) + [0] * (width - len(own)) + [1] * len(own) for own in prompts])
    shown = shown.to(device)
    positions = (shown.cumsum(-1) - 1).clamp(min=0)
    mask = torch.cat([readable[rows], shown[:, len(prefix) :]], dim=1)
    states: list[torch.Tensor] = []
    # The head's input at each step is the state that predicts the next token: all that the codebook needs.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][:, -1]))
    try:
        output = model.backbone.generate(
            input_ids=ids,
            attention_mask=mask,
            position_ids=model.family.positions(positions, ids, model.config.backbone_config),
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=processor.tokenizer.eos_token_id,
            **({"do_sample": False} | settings),
        )
    finally:
        hook.remove()
    return output[:, ids.shape[1] :], torch.stack(states, 1)


def read_prefix(model: PopenForReasoningSegmentation, prefix: list[int], pictures: EncodedPictures):
    """The cache after the prefix of P pictures, and which columns later tokens may attend to, (P, S) of 0 and 1."""
    ids = torch.tensor([prefix] * len(pictures.language), device=model.device)
    positions = torch.arange(len(prefix), device=model.device).expand_as(ids)
    readable = pictures.readable(ids == model.config.backbone_config.image_token_id).long()
    output = model.language_pass(ids, positions, readable, pictures, use_cache=True)
    return output.past_key_values, readable
