"""FlexAttention in every family: the dense mask's numbers, or a refusal by name."""

import copy

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaModel
from transformers.integrations import flex_attention as flex_integration

from popen.data.safe_io import DataError
from popen.lvlm.loading import load_model
from popen.lvlm.packing import supervised_batch
from popen.lvlm.row_attention import FLEX
from tests.lvlm.families.tiny_backbones import BACKBONES

ASIDE = ("token_sequence", "sequence_row", "look_row", "look_column", "look_target")


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_its_numbers_are_those_of_the_dense_mask(name, composed, samples, monkeypatch):
    """In plain operations on a CPU, hidden picture tokens and all, to 1e-4."""
    monkeypatch.setattr(
        flex_integration, "compile_friendly_flex_attention",
        lambda query, key, value, training=False, **options: flex_attention(query, key, value, **options),
    )  # fmt: skip
    model, processor = composed(name)
    model = copy.deepcopy(model)
    vision = model.config.backbone_config.vision_config
    before = vision._attn_implementation
    inputs = {k: v for k, v in supervised_batch(processor, samples[:2]).items() if k not in ASIDE}
    with torch.no_grad():
        dense = model(**inputs)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            model.set_attn_implementation(FLEX)
        assert model.config.get_text_config()._attn_implementation == FLEX != before == vision._attn_implementation
        flex = model(**inputs)
    torch.testing.assert_close(flex.logps, dense.logps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flex.embeddings, dense.embeddings, atol=1e-4, rtol=1e-4)


def test_a_language_model_that_does_not_take_it_is_refused_by_name_at_load(composed, monkeypatch, tmp_path):
    """As transformers says of its class, where the family does not know better."""
    for part in composed("llava"):
        part.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(LlamaModel, "_supports_flex_attn", False)
    named = "^attn_implementation flex_attention: LlamaModel of backbone 'llava' does not take it; leave it out$"
    with pytest.raises(DataError, match=named):
        load_model(tmp_path, attn_implementation=FLEX)
