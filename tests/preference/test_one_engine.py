"""One engine: the same losses take margins of texts, embeddings, 2-D and 3-D masks, and no file asks which it is."""

from functools import partial
from pathlib import Path

import pytest
import torch

from popen.objectives.pairs import Completions, SegPairs, TextPairs, seg_embedding_dpo, seg_mask_dpo, text_dpo
from popen.objectives.preference import conservative_loss, hinge_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.region_pairs import (
    RegionPairs,
    class_mean,
    image_mean,
    power,
    region_dpo,
    region_mean,
    seg_region_dpo,
    total,
)
from popen.objectives.regions import gather_region, independent_regions, one_hot_regions
from popen.objectives.scores import embedding_cosine_margin, weighted_token_logps

LOSSES = {
    "sigmoid": partial(sigmoid_loss, beta=0.5),
    "hinge": partial(hinge_loss, beta=0.5),
    "ipo": partial(ipo_loss, beta=0.5),
    "cdpo": partial(conservative_loss, beta=0.5, label_smoothing=0.1),
    "rdpo": partial(robust_loss, beta=0.5, label_smoothing=0.1),
}
N = 4


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def texts(loss):
    logps = [noise(N, 5).requires_grad_() for _ in range(2)]
    mask, changed = torch.ones(N, 5).bool(), torch.ones(N, 5).bool()
    sides = [Completions(own, own.detach().clone(), mask, changed) for own in logps]
    return text_dpo(TextPairs(*sides), partial(weighted_token_logps, weight=1.0), loss), logps


def seg_pairs(e, logits):
    other, empty = noise(N, 2, 3), logits.detach()
    signs = torch.tensor([1.0, -1.0, 1.0]).expand(N, 3)
    return SegPairs(
        e, e.detach(), other, other.flip(0), other.flip(0), logits, empty, signs, torch.full((N,), 0.2),
        torch.tensor([9, 20, 20, 7]),
    )  # fmt: skip


def embeddings(loss):
    e = noise(N, 2, 3).requires_grad_()
    return seg_embedding_dpo(seg_pairs(e, noise(N, 3)), embedding_cosine_margin, loss), [e]


def lvlm_masks(loss):
    logits = noise(N, 3).requires_grad_()
    return seg_mask_dpo(seg_pairs(noise(N, 2, 3), logits), loss), [logits]


def lvlm_regions(loss, margin):
    logits = noise(N, 3).requires_grad_()
    return seg_region_dpo(seg_pairs(noise(N, 2, 3), logits), partial(region_dpo, margin=margin, loss=loss)), [logits]


def masks(loss, margin, shape, one_hot):
    logits = noise(N, 3, *shape).requires_grad_()
    if one_hot:
        chosen, rejected = (
            torch.nn.functional.one_hot(noise(N, *shape, k).argmax(-1) % 3, 3).movedim(-1, 1).bool() for k in (5, 7)
        )
    else:
        chosen, rejected = noise(N, 3, *shape) > 0, noise(N, 3, *shape).flip(0) > 0
    regions = (one_hot_regions if one_hot else independent_regions)(chosen, rejected)
    own = gather_region(logits, regions.index)
    pixels = float(chosen[0].numel()) / (3 if one_hot else 1)
    pairs = RegionPairs(
        own, own.detach(), regions.sign, regions.classes, torch.full((N,), 0.2), regions.entries, pixels
    )  # fmt: skip
    return region_dpo(pairs, margin, loss), [logits]


KINDS = {"text": texts, "embedding": embeddings, "masks of an LVLM": lvlm_masks}
MARGINS = {
    "sum": total,
    "image": image_mean,
    "region": region_mean,
    "class": class_mean,
    "root": partial(power, alpha=0.5),
}
for margin_name, own_margin in MARGINS.items():
    KINDS[f"masks of an LVLM, {margin_name}"] = partial(lvlm_regions, margin=own_margin)
    for shape in ((4, 5), (3, 4, 5)):
        for one_hot in (False, True):
            kind = f"{len(shape)}-D {'softmax' if one_hot else 'sigmoid'} {margin_name}"
            KINDS[kind] = partial(masks, margin=own_margin, shape=shape, one_hot=one_hot)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_policy_and_reference_alike_have_no_margin_and_a_step_makes_one(kind, loss):
    found, trained = KINDS[kind](LOSSES[loss])
    margin = found.chosen - found.rejected
    torch.testing.assert_close(margin, torch.zeros(N))
    torch.testing.assert_close(found.losses, LOSSES[loss](torch.zeros(N)))
    gradients = torch.autograd.grad(margin.sum(), trained, retain_graph=True)
    steps = torch.autograd.grad(found.losses.sum(), trained)
    downhill = sum(float((g * s).sum()) for g, s in zip(gradients, steps, strict=True))
    assert downhill < 0  # what lowers the loss raises the margin


def test_no_file_of_the_engine_asks_what_it_works_on():
    root = Path(__file__).parent.parent.parent / "popen"
    for file in [*(root / "preference").glob("*.py"), *(root / "objectives").glob("*.py")]:
        source = file.read_text()
        for word in ("if medical", "is_medical", "from popen.medical", "from popen.lvlm", "spatial_dims"):
            assert word not in source, f"{file.name}: {word}"
