"""One model per family, made once."""

import pytest

from popen.lvlm.composing import compose
from tests.lvlm.families.tiny_backbones import tiny_backbone

SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "decoder_mlp_dim": 24}


@pytest.fixture(scope="session")
def corpus(samples) -> list[str]:
    return [text for s in samples for q in s.questions for text in (q.question, q.answer)]


@pytest.fixture(scope="session")
def composed(corpus):
    """Family name to (model, processor), made when first asked for; copy a model before changing it."""
    made = {}

    def of(name: str):
        if name not in made:
            side, backbone, processor = tiny_backbone(name, corpus)
            model, processor = compose(backbone, processor, side, 400, tokens_per_scale=2, **SMALL)
            made[name] = model.eval(), processor
        return made[name]

    return of
