"""LLaVA-shaped models of any size with random weights, and questions and answers of an exact number of tokens.

A scripted model answers every question with the same words and one target: an untrained one would speak of nothing,
and no mask would be decoded. Every layer computes what it would in a trained one.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from popen.data import rle
from popen.data.schema import SEG, Question, Sample, empty_ignore
from popen.lvlm.composing import compose
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.processing_popen import PopenProcessor
from popen.lvlm.tiny import CHAT_TEMPLATE, tiny_tokenizer

WORDS = [f"{first}{second}" for first in ("ba", "de", "fi", "go", "lu", "mo", "ne", "pi") for second in
         ("bar", "den", "fil", "gos", "lum", "mon", "nep", "pit", "rod", "sul", "tak", "vim")]  # fmt: skip

PATCH = 14  # pixels of a picture token along a side, as CLIP-L has them


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of what is read and said.

    Args:
        width, layers, heads, mlp, vocabulary: of the language model. vision_width, vision_layers: of the CLIP tower.
        image_size: side of the canvas; prompt, answer: tokens beside the picture's.
        decoder: width of the mask decoder. batch: pictures of a training step.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    image_size: int
    prompt: int
    answer: int
    decoder: int
    batch: int = 1
    dtype: str = "float32"

    @property
    def picture(self) -> int:
        """Tokens of a picture."""
        return (self.image_size // PATCH) ** 2


# LLaVA-1.5 at an eighth of its width on a CPU, at its full width but with few layers on a GPU: 576 picture tokens
TOY = Shape(48, 2, 4, 96, 768, 32, 2, 56, 24, 24, 16)
CPU = Shape(512, 6, 8, 1408, 4096, 192, 4, 336, 64, 64, 64)
CUDA = Shape(4096, 4, 32, 11008, 32064, 1024, 6, 336, 64, 64, 256, batch=4, dtype="bfloat16")
LLAVA_7B = replace(CUDA, layers=32, vision_layers=24)
# what answers questions one token at a time without a cache takes an hour at the CPU's sizes above
SPEAKING_CPU = replace(CPU, width=256, layers=4, mlp=704, heads=4, vision_width=128, answer=32, decoder=32)


def shape_here(toy: bool) -> Shape:
    """The sizes for this machine, to train."""
    return TOY if toy else CUDA if torch.cuda.is_available() else CPU


def deep_shape_here(toy: bool) -> Shape:
    """The sizes for this machine with all the layers, where what does not grow with them would count too much."""
    return TOY if toy else LLAVA_7B if torch.cuda.is_available() else CPU


def speaking_shape_here(toy: bool) -> Shape:
    """The sizes for this machine, to answer questions."""
    return TOY if toy else LLAVA_7B if torch.cuda.is_available() else SPEAKING_CPU


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def build(shape: Shape, seed: int) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """An untrained popen model around a LLaVA of this shape, on this machine's device, with its processor."""
    tokenizer = tiny_tokenizer([f"{word} {word}" for word in WORDS] * 2, 700, codebook_size=0)
    pictures = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, size={"height": shape.image_size, "width": shape.image_size},
        crop_size={"height": shape.image_size, "width": shape.image_size},
    )  # fmt: skip
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width, intermediate_size=4 * shape.vision_width, patch_size=PATCH,
        num_hidden_layers=shape.vision_layers, num_attention_heads=max(shape.vision_width // 64, 2),
        image_size=shape.image_size,
    )  # fmt: skip
    words = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=words, image_seq_length=shape.picture,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(device()):  # seven billion weights are drawn in a second there, and in minutes on a CPU
        backbone = LlavaForConditionalGeneration(config).to(getattr(torch, shape.dtype))
        model, processor = compose(
            backbone, processor, shape.image_size, max_length=4096, seed=seed, decoder_dim=shape.decoder,
            decoder_heads=4, decoder_mlp_dim=4 * shape.decoder,
        )  # fmt: skip
    model.config.embedding_std = [1.0] * model.config.scales
    return model.to(device()).eval(), processor


def words_of(processor: PopenProcessor, tokens: int, seed: int, counted) -> str:
    """Words that `counted` finds to be exactly so many tokens.

    Raises:
        ValueError: the tokenizer gives no such words.
    """
    draw = np.random.default_rng(seed)
    text = WORDS[draw.integers(len(WORDS))]
    while len(counted(text)) < tokens:
        text += " " + WORDS[draw.integers(len(WORDS))]
    if len(counted(text)) != tokens:
        raise ValueError(f"{len(counted(text))} tokens where {tokens} were asked for: a word is more than one token")
    return text


def question(processor: PopenProcessor, shape: Shape, seed: int) -> str:
    """A question of `shape.prompt` tokens, with the cue to answer."""
    return words_of(processor, shape.prompt, seed, processor.question_ids)


def answer(processor: PopenProcessor, shape: Shape, seed: int, targets: int = 1) -> str:
    """An answer of `shape.answer` tokens that ends with its targets."""
    tail = SEG * targets
    return words_of(processor, shape.answer, seed, lambda text: processor.answer_ids(text + tail)) + tail


def picture(seed: int, height: int = 480, width: int = 640) -> Image.Image:
    """A picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(processor: PopenProcessor, shape: Shape, seed: int, questions: int = 1, targets: int = 1) -> Sample:
    """A picture with questions; every target is a rectangle of its own."""
    image, asked = picture(seed), []
    draw = np.random.default_rng(seed)
    for number in range(questions):
        masks = []
        for _ in range(targets):
            mask = np.zeros((image.height, image.width), bool)
            top, left = draw.integers(0, 240), draw.integers(0, 320)
            mask[top : top + draw.integers(40, 240), left : left + draw.integers(40, 320)] = True
            masks.append(rle.encode(mask))
        words = answer(processor, shape, seed + number, targets)
        phrases = processor.decode_answer(processor.answer_ids(words)).phrases
        own = question(processor, shape, seed + number)
        asked.append(Question(f"{seed}-{number}", "benchmark", own, words, phrases, tuple(masks)))
    return Sample(image, str(seed), (), empty_ignore(image.height, image.width), tuple(asked))


def speak(model: PopenForReasoningSegmentation, processor: PopenProcessor, words: str, last_of_prompt: int) -> None:
    """Makes the model answer every question with these words, which hold no token twice.

    A state becomes that of the token it stands on, and the output embedding maps each token to the next: the layers
    compute as before, but what they add is made small.

    Raises:
        ValueError: the answer holds a token twice, or the one that ends the prompt.
    """
    said = [last_of_prompt, *processor.answer_ids(words)]
    if len(set(said)) != len(said):
        raise ValueError("the script holds a token twice: give an answer of different words with one target")
    language = model.backbone.model.language_model
    with torch.no_grad():
        embedded = language.embed_tokens.weight
        embedded.normal_(0, 1, generator=torch.Generator(embedded.device).manual_seed(0))
        for layer in language.layers:
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
        head = model.get_output_embeddings().weight.zero_()
        for before, after in itertools.pairwise(said):
            head[after] = embedded[before] / embedded[before].norm()


def scripted(shape: Shape, seed: int) -> tuple[PopenForReasoningSegmentation, PopenProcessor]:
    """A model that answers every question with `shape.answer` tokens and one target."""
    model, processor = build(shape, seed)
    different = WORDS[: shape.answer - len(processor.answer_ids(SEG))]
    text = different[0]
    for word in different[1:]:
        text += " " + word
    speak(model, processor, text + SEG, processor.question_ids(question(processor, shape, seed))[-1])
    return model, processor
