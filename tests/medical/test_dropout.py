"""Dropout comes where there was none, wakes alone, and gives each picture its own hypotheses whoever is beside it."""

import copy

import pytest
import torch
from torch import nn

from popen.medical.dropout import dropout_hypotheses, inject_dropout, stochastic
from popen.medical.networks import build_network

RATES = (0.1, 0.3, 0.5)
NAMES = ("ada", "bo", "cy")


class Halves(nn.Module):
    """An encoder without dropout and a decoder; counts the rows that each of them sees."""

    def __init__(self, decoder_dropout: nn.Module | None = None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        if decoder_dropout is not None:
            self.decoder.append(decoder_dropout)
        self.head = nn.Conv2d(8, 2, 3, padding=1)
        self.seen: list[tuple[str, int]] = []

    def forward(self, pictures):
        features = self.encoder(pictures)
        return self.head(self.decoder(features))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_injection_keeps_names_and_weights_and_drops_whole_channels_behind_each_norm(pictures):
    model = Halves().eval()
    before, keys = model(pictures), list(model.state_dict())
    assert inject_dropout(model, 0.5) == 2
    assert list(model.state_dict()) == keys
    assert torch.equal(model(pictures), before)  # eval: nothing is dropped
    norm = model.encoder[1].train()
    dropped = norm(torch.randn(4, 8, 6, 6)).flatten(2)
    empty = (dropped == 0).all(2)
    assert 0 < empty.float().mean() < 1 and not (dropped[~empty] == 0).any()


def test_injection_survives_deepcopy_and_loading(pictures):
    model = Halves()
    inject_dropout(model, 0.4)
    twin = copy.deepcopy(model)
    inject_dropout(twin, 0.1)
    fresh = Halves()
    inject_dropout(fresh, 0.4)
    fresh.load_state_dict(model.state_dict())
    first, second, third = (dropout_hypotheses(m, pictures, RATES, 0, NAMES) for m in (model, twin, fresh))
    assert torch.equal(first, second) and torch.equal(first, third)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout2d)} == {0.4}
    assert {m.p for m in twin.modules() if isinstance(m, nn.Dropout2d)} == {0.1}


def test_injecting_twice_is_injecting_once(pictures):
    once, twice = Halves(), Halves()
    twice.load_state_dict(once.state_dict())
    inject_dropout(once, 0.3)
    assert [inject_dropout(twice, rate) for rate in (0.6, 0.3)] == [2, 2]
    assert [str(m) for m in once.modules()] == [str(m) for m in twice.modules()]
    a, b = (dropout_hypotheses(m, pictures, RATES, 0, NAMES) for m in (once, twice))
    assert torch.equal(a, b)


def test_without_norms_wide_convolutions_drop_except_the_last():
    layers = [nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 3), nn.Conv3d(4, 1, 3)]
    model = nn.Sequential(*layers)
    assert inject_dropout(model, 0.2) == 2
    assert [isinstance(getattr(layer, "injected_dropout", None), nn.Dropout3d) for layer in layers] == [
        True, False, False, True, False,
    ]  # fmt: skip


def test_a_norm_of_one_channel_keeps_it():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))
    assert inject_dropout(model, 0.2) == 1


@pytest.mark.parametrize(
    "model, p, message",
    [
        (Halves(), 0.0, r"p = 0.0: dropout needs a share in \(0, 1\)"),
        (Halves(), 1.0, "p = 1.0"),
        (
            Halves(nn.Dropout(0.1)),
            0.2,
            r"has dropout of its own \(decoder.3\); set its rate by the config's `dropout`",
        ),
        (nn.Linear(2, 2), 0.2, "no convolution block"),
    ],
)
def test_injections_that_make_no_sense_are_refused(model, p, message):
    with pytest.raises(ValueError, match=message):
        inject_dropout(model, p)


def test_dropout_of_rate_0_counts_as_none(tiny_config):
    model = build_network(tiny_config("unet", dropout=0.0))
    assert any(isinstance(m, nn.Dropout) for m in model.modules())  # MONAI leaves them
    with pytest.raises(ValueError, match="has no dropout"), stochastic(model, 0.2):
        pass
    assert inject_dropout(model, 0.2) > 0


def test_only_dropout_wakes_and_statistics_stay(pictures):
    model = Halves(nn.Dropout2d(0.5)).eval()
    model.encoder.train()  # a mixed state must come back, too
    was, before = modes(model), statistics(model)
    with stochastic(model):
        assert [name for name, m in model.named_modules() if m.training] == ["decoder.3"]
        first, second = model(pictures), model(pictures)
    assert not torch.equal(first, second)
    assert modes(model) == was
    assert all(torch.equal(buffer, before[name]) for name, buffer in statistics(model).items())


def test_rates_of_a_context_hold_inside_only():
    model = Halves(nn.Dropout(0.5)).train()
    model.decoder.append(nn.Dropout(0.0))
    with pytest.raises(KeyError), stochastic(model, 0.1):
        assert (model.decoder[3].p, model.decoder[4].p) == (0.1, 0.0)
        raise KeyError("in the middle")
    assert (model.decoder[3].p, model.decoder[4].p) == (0.5, 0.0)
    assert all(modes(model)) and torch.backends.mha.get_fastpath_enabled()


def test_the_rate_is_the_share_that_is_lost():
    model = nn.Sequential(nn.Dropout(0.5))
    with stochastic(model, 0.2):
        found = model(torch.ones(1, 1, 100, 100))
    assert found.unique().tolist() == pytest.approx([0, 1.25])
    assert (found == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_a_transformer_of_torch_drops_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    tokens = torch.randn(1, 5, 8)
    with torch.no_grad(), stochastic(layer):
        assert not torch.equal(layer(tokens), layer(tokens))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_impossible_rates_are_refused(rate):
    with (
        pytest.raises(ValueError, match=f"rate = {rate}: dropout needs a share"),
        stochastic(Halves(nn.Dropout()), rate),
    ):
        pass


def test_a_network_without_dropout_is_told_what_to_do(pictures):
    message = r"no dropout.*config's `dropout` above 0, or call inject_dropout\(model, p\)"
    with pytest.raises(ValueError, match=message), stochastic(Halves()):
        pass
    with pytest.raises(ValueError, match=message):
        dropout_hypotheses(Halves(), pictures, RATES, 0, NAMES)


@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_is_refused_by_name(kind, pictures):
    with pytest.raises(ValueError, match=f"decoder.3: {kind.__name__} is not supported"):
        dropout_hypotheses(Halves(kind(0.1)), pictures, RATES, 0, NAMES)


@pytest.mark.parametrize(
    "network", ["unet", "segresnet", "unetr", "swin_unetr", "residual_encoder_unet", "transattunet"]
)
def test_a_hypothesis_does_not_depend_on_its_batch(network, tiny_config):
    """Convolutions, tokens and windows: alone, beside others, or in another order, to the last bit."""
    config = tiny_config(network)
    model = build_network(config)
    pictures = torch.randn(3, 3, *config.patch_size)
    together = dropout_hypotheses(model, pictures, RATES, 7, NAMES)
    assert together.shape == (3, 3, 2, *config.patch_size)
    assert torch.equal(dropout_hypotheses(model, pictures[1:2], RATES, 7, NAMES[1:2]), together[1:2])
    turned = dropout_hypotheses(model, pictures.flip(0), RATES, 7, NAMES[::-1])
    assert torch.equal(turned.flip(0), together)
    two_by_two = dropout_hypotheses(model, pictures, RATES, 7, NAMES, at_once=2)
    torch.testing.assert_close(two_by_two, together, rtol=1e-4, atol=1e-4)  # rounds otherwise, drops the same
    turned = dropout_hypotheses(model, pictures.flip(0), RATES, 7, NAMES[::-1], at_once=2)
    assert torch.equal(turned.flip(0), two_by_two)


def test_seed_name_and_k_each_make_a_hypothesis(pictures):
    model = Halves(nn.Dropout(0.5))
    same = pictures[:1].expand(2, -1, -1, -1)
    found = dropout_hypotheses(model, same, (0.3, 0.3), 0, ("a", "b"))
    other = dropout_hypotheses(model, same, (0.3, 0.3), 1, ("a", "b"))
    assert len(torch.cat([found, other]).flatten(0, 1).flatten(1).unique(dim=0)) == 8


def test_sampling_leaves_no_trace(pictures):
    model = Halves(nn.Dropout2d(0.5)).train()
    model.decoder.eval()
    was, before, state = modes(model), statistics(model), torch.get_rng_state()
    found = dropout_hypotheses(model, pictures, RATES, 0, NAMES)
    assert modes(model) == was and model.decoder[3].p == 0.5 and not found.requires_grad
    assert all(torch.equal(buffer, before[name]) for name, buffer in statistics(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_as_before_after_an_error(pictures):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 7)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dropout_hypotheses(model, pictures, RATES, 0, NAMES)
    assert all(modes(model)) and not any(m._forward_hooks for m in model.modules())


def test_rate_0_is_the_clean_pass_and_doubt_grows_with_the_rate(pictures):
    model = Halves(nn.Dropout2d(0.5)).eval()
    rates = (0.0, *[0.05] * 8, *[0.3] * 8, *[0.6] * 8)
    found = dropout_hypotheses(model, pictures, rates, 0, NAMES)
    clean = model(pictures)
    torch.testing.assert_close(found[:, 0], clean, rtol=1e-5, atol=1e-6)
    spread = [(found[:, i : i + 8] - clean[:, None]).square().mean().item() for i in (1, 9, 17)]
    assert 0 < spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("kind, dims", [(nn.Dropout, 2), (nn.Dropout1d, 1), (nn.Dropout2d, 2), (nn.Dropout3d, 3)])
def test_masks_are_those_of_the_kind_of_dropout(kind, dims):
    """On ones: 0 or 1 / (1 − p) per element or per channel, a share p of them 0, each row at its own rate."""

    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = kind(0.5)

        def forward(self, pictures):
            return self.dropout(pictures.flatten(2) if dims == 1 else pictures)

    shape = (1, 400, *(4,) * max(dims, 2))
    found = dropout_hypotheses(Only(), torch.ones(shape), (0.2, 0.6), 0, ("a",))[0].flatten(2)
    for row, rate in zip(found, (0.2, 0.6), strict=True):
        assert row.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert (row == 0).float().mean().item() == pytest.approx(rate, abs=0.07)
        assert ((row.std(1) == 0).all()) == (kind is not nn.Dropout)


def test_the_encoder_runs_once_where_it_has_no_dropout(pictures):
    model = Halves(nn.Dropout(0.5))
    rows = {"encoder": [], "decoder": []}
    for name, seen in rows.items():
        getattr(model, name).register_forward_hook(lambda _m, inputs, _o, seen=seen: seen.append(len(inputs[0])))
    shared = dropout_hypotheses(model, pictures, RATES, 0, NAMES, at_once=3)
    assert rows == {"encoder": [3], "decoder": [9]}
    whole = dropout_hypotheses(nn.Sequential(nn.Dropout(1e-9), model), pictures, RATES, 0, NAMES, at_once=3)
    assert rows["encoder"] == [3, 9] and whole.shape == shared.shape
    inject_dropout(copied := Halves(), 0.5)
    copied.encoder.register_forward_hook(lambda _m, inputs, _o: rows["encoder"].append(len(inputs[0])))
    dropout_hypotheses(copied, pictures, RATES, 0, NAMES, at_once=3)
    assert rows["encoder"][-1] == 9


def test_sharing_the_encoder_changes_no_hypothesis(pictures):
    class Copied(nn.Module):
        """Hands on a copy of the pictures, which no longer are the rows that could be shared."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pictures):
            return self.model(pictures.clone())

    model = Halves(nn.Dropout2d(0.5))
    shared, whole = (dropout_hypotheses(m, pictures, RATES, 0, NAMES) for m in (model, Copied(model)))
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-6)


def test_a_part_that_is_not_batch_first_is_not_shared(pictures):
    class Turned(nn.Module):
        def forward(self, pictures):
            return pictures.transpose(0, 1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn, self.dropout = Turned(), nn.Dropout(0.5)

        def forward(self, pictures):
            return self.dropout(self.turn(pictures).transpose(0, 1).contiguous())

    found = dropout_hypotheses(Model(), torch.ones(2, 3, 4, 4), (0.0, 0.5), 0, ("a", "b"))
    assert (found[:, 0] == 1).all() and set(found[:, 1].unique().tolist()) == {0.0, 2.0}


def test_lists_of_a_shared_encoder_and_of_deep_supervision_are_understood(tiny_config):
    config = tiny_config("residual_encoder_unet", dropout=0.0, options={"deep_supervision": True})
    model = build_network(config)
    inject_dropout(model.decoder.stages, 0.5)
    found = dropout_hypotheses(model, torch.randn(1, 3, 32, 32), RATES, 0, ("a",))
    assert found.shape == (1, 3, 2, 32, 32) and found.std(1).max() > 0


def test_a_network_that_is_not_batch_first_is_refused():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, pictures):
            return self.dropout(pictures.transpose(0, 1))

    with pytest.raises(
        ValueError, match="not that of the 3 rows; seeded hypotheses need a network that is batch first"
    ):
        dropout_hypotheses(Turned(), torch.ones(1, 5, 4, 4), RATES, 0, ("a",))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pictures": torch.ones(3, 8, 8)}, r"pictures \(3, 8, 8\) torch.float32: expected float"),
        ({"pictures": torch.ones(3, 3, 8, 8, dtype=torch.uint8)}, "expected float"),
        ({"pictures": torch.ones(0, 3, 8, 8), "names": ()}, "B >= 1"),
        ({"names": ("a",)}, "1 names for 3 pictures"),
        ({"rates": ()}, "one or more"),
        ({"rates": (0.1, 1.0)}, r"rates \[0.1, 1.0\] must be shares in \[0, 1\)"),
        ({"at_once": 0}, "at_once 0 >= 1"),
    ],
)
def test_bad_requests_are_refused(changes, message, pictures):
    request = {"pictures": pictures, "rates": RATES, "seed": 0, "names": NAMES} | changes
    with pytest.raises(ValueError, match=message):
        dropout_hypotheses(Halves(nn.Dropout()), **request)
