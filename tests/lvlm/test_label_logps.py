"""Log-probabilities piece by piece: those of all logits at once, gradients too, and the memory of one piece."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.rates import allocated_peak
from popen.lvlm import label_logps as module
from popen.lvlm.label_logps import label_logps, tokens_at_once
from popen.lvlm.packing import supervised_batch
from popen.objectives.scores import per_token_logps
from popen.training.activations import kept_for_backward
from popen.training.lora import LoraArguments, with_lora
from popen.training.memory import READ_LOGIT, TRAINED_LOGIT, logits_at_once

VOCABULARY, WIDTH, PIECE = 37, 8, 5
ASIDE = ("token_sequence", "sequence_row")


@pytest.fixture
def pieces_of(monkeypatch):
    """Sets how many tokens of how many words a piece has."""

    def of(tokens, vocabulary=VOCABULARY):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", tokens * vocabulary + vocabulary // 2)
        assert tokens_at_once(vocabulary) == tokens

    return of


def head_of(dtype=torch.float32, vocabulary=VOCABULARY, bias=True):
    torch.manual_seed(0)
    return nn.Linear(WIDTH, vocabulary, bias).to(dtype)


def tokens_of(number, dtype=torch.float32, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(number)
    states = torch.randn(number, WIDTH, generator=generator).to(dtype).requires_grad_()
    return states, torch.randint(vocabulary, (number,), generator=generator)


def with_gradients(logps, states, head):
    """The log-probabilities, and gradients of a sum in which each has a weight of its own."""
    weight = torch.arange(1, len(logps) + 1, dtype=logps.dtype) / 7
    return logps, *torch.autograd.grad((logps * weight).sum(), (states, *head.parameters()))


@pytest.mark.parametrize("dtype, atol, rtol", [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 1e-2, 1e-2)])
@pytest.mark.parametrize("number", [0, 1, 4, 5, 6, 9, 10, 11, 23])
def test_pieces_give_what_all_at_once_give(number, dtype, atol, rtol, pieces_of):
    """Around the ends of pieces of five tokens; in bfloat16 gradients of the head are rounded once for each piece."""
    pieces_of(PIECE)
    head, (states, labels) = head_of(dtype), tokens_of(number, dtype)
    expected = with_gradients(per_token_logps(head(states), labels), states, head)
    found = with_gradients(label_logps(head, states, labels, VOCABULARY), states, head)
    assert found[0].dtype == torch.float32 and found[0].shape == (number,)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=atol, rtol=rtol)
    with torch.no_grad():
        torch.testing.assert_close(label_logps(head, states, labels, VOCABULARY), expected[0])


@pytest.mark.parametrize("number, forward, backward", [(0, 1, 0), (5, 1, 0), (6, 2, 2), (23, 5, 5)])
def test_only_what_is_in_pieces_is_computed_twice(number, forward, backward, pieces_of):
    pieces_of(PIECE)
    head, (states, labels), calls = head_of(), tokens_of(number), []
    head.register_forward_hook(lambda head, given, logits: calls.append(len(logits)))
    logps = label_logps(head, states, labels, VOCABULARY)
    assert len(calls) == forward and sum(calls) == number and max(calls) <= PIECE
    calls.clear()
    logps.sum().backward()
    assert len(calls) == backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_piece(dtype, pieces_of):
    """By torch's profiler: 16 bytes for each logit of one piece of sixteen, and 8 where nothing is trained."""
    vocabulary, number = 1024, 1024
    head = head_of(dtype, vocabulary, bias=False).requires_grad_(False)
    states, labels = tokens_of(number, dtype, vocabulary)

    def train():
        label_logps(head, states, labels, vocabulary).sum().backward()

    def read():
        with torch.no_grad():
            label_logps(head, states, labels, vocabulary)

    for tokens in (number, number // 16):
        pieces_of(tokens, vocabulary)
        for work, logit in ((train, TRAINED_LOGIT), (read, READ_LOGIT)):
            bytes_at_once = logit * logits_at_once(number, vocabulary)
            assert allocated_peak(work) == pytest.approx(bytes_at_once, rel=0.1)
    own = {tensor.untyped_storage()._cdata for tensor in (head.weight, states, labels)}
    kept, _ = kept_for_backward(lambda: label_logps(head, states, labels, vocabulary).sum(), own)
    assert kept < 1000  # what knows how to compute them again, not one token's logits


def test_an_adapter_with_dropout_drops_the_same_when_computed_again(pieces_of):
    """Numerically: the gradient of a state is what the log-probabilities with that dropout change by."""
    pieces_of(PIECE)
    lora = LoraConfig(r=2, target_modules=["0"], lora_dropout=0.5, init_lora_weights=False)
    head, (states, labels) = get_peft_model(nn.Sequential(head_of()), lora).double().train(), tokens_of(12)

    def total(states):
        torch.manual_seed(3)
        return label_logps(head, states, labels, VOCABULARY).sum()

    states = states.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(total(states), states)
    step = 1e-6 * torch.randn(states.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        change = float(total(states + step) - total(states - step)) / 2
    assert change == pytest.approx(float((gradient * step).sum()), rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_models_step_in_pieces_is_its_step(tiny, samples, pieces_of, adapted, checkpointed):
    """Loss and all gradients, also where only some rows of the words are trained, which the head shares."""
    batch = supervised_batch(tiny[1], samples[:2])
    inputs = {name: value for name, value in batch.items() if name not in ASIDE}
    steps = []
    for tokens in (10_000, 7):
        model = copy.deepcopy(tiny[0])
        pieces_of(tokens, model.config.get_text_config().vocab_size)
        assert (len(inputs["token_labels"]) > 10 * tokens) == (tokens == 7)
        if checkpointed:
            model.gradient_checkpointing_enable()
        if adapted:
            torch.manual_seed(0)
            model = with_lora(model, LoraArguments(use_peft=True, lora_dropout=0.0))
        output = model.train()(**inputs)
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        steps.append((output.loss.detach(), output.logps.detach(), gradients))
    torch.testing.assert_close(*steps, atol=1e-5, rtol=1e-4)
