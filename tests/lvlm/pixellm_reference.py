"""PixelLM at tiny size, written from its published description in plain tensor operations: weights, files, forward.

Nothing of popen is imported. Names and shape relations of the weights are those of the released checkpoint; numbers
are random. One picture token is 2 × 2 patches, 8 × 8 patches of 14 pixels are a picture of 112, the tower was made for
6 × 6.
"""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIDE, PATCH, GRID, OLD_GRID = 112, 14, 8, 6
CHANNELS, HIDDEN, DIM, HEADS, TOWER_LAYERS = 12, 16, 32, 8, 12
SEG = [f"[SEG{i}]" for i in range(6)]


# ---- words


def words(corpus):
    """A byte-level BPE of its own with PixelLM's tokens added and BOS in front, as LLaMA's has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        ),
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.add_tokens(SEG)
    wrapped.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    return wrapped


# ---- weights


def linear(state, name, inputs, outputs):
    state[f"{name}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    state[f"{name}.bias"] = torch.randn(outputs) * 0.1


def norm(state, name, width):
    state[f"{name}.weight"] = 1 + torch.randn(width) * 0.2
    state[f"{name}.bias"] = torch.randn(width) * 0.2


def released_state(vocabulary: int) -> dict[str, torch.Tensor]:
    """Every weight a merged checkpoint holds, LLaMA's and PixelLM's; no tower, no fusion constants."""
    torch.manual_seed(7)
    llama = LlamaForCausalLM(LlamaConfig(**LLAMA, vocab_size=vocabulary, initializer_range=0.2))
    state = dict(llama.state_dict())
    for layer in range(LLAMA["num_hidden_layers"]):  # a buffer that transformers 4.31 saved
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(HIDDEN // HEADS // 2)
    for name in ("mm_projector", "out_mm_projector"):
        linear(state, f"model.{name}.0", CHANNELS, 2 * HIDDEN)
        linear(state, f"model.{name}.2", 2 * HIDDEN, HIDDEN)
    linear(state, "model.text_hidden_fcs.0.0", HIDDEN, HIDDEN)
    linear(state, "model.text_hidden_fcs.0.2", HIDDEN, DIM)
    neck = "model.image_feature_neck"
    state[f"{neck}.0.weight"] = torch.randn(DIM, HIDDEN, 1, 1) / HIDDEN**0.5
    state[f"{neck}.2.weight"] = torch.randn(DIM, DIM, 3, 3) / (9 * DIM) ** 0.5
    norm(state, f"{neck}.1", DIM)
    norm(state, f"{neck}.3", DIM)
    prompt_state(state, "model.prompt_encoder")
    decoder_state(state, "model.mask_decoder")
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def prompt_state(state, prompts):
    state[f"{prompts}.pe_layer.positional_encoding_gaussian_matrix"] = torch.randn(2, DIM // 2)
    for name in (*(f"point_embeddings.{i}" for i in range(4)), "not_a_point_embed", "no_mask_embed"):
        state[f"{prompts}.{name}.weight"] = torch.randn(1, DIM)
    for index, (inputs, outputs, kernel) in {0: (1, 4, 2), 3: (4, 16, 2), 6: (16, DIM, 1)}.items():
        state[f"{prompts}.mask_downscaling.{index}.weight"] = torch.randn(outputs, inputs, kernel, kernel)
        state[f"{prompts}.mask_downscaling.{index}.bias"] = torch.randn(outputs)
    norm(state, f"{prompts}.mask_downscaling.1", 4)
    norm(state, f"{prompts}.mask_downscaling.4", 16)


def decoder_state(state, decoder):
    for level in range(2):
        for layer in range(2):
            block = f"{decoder}.transformer.{level}.layers.{layer}"
            attention_state(state, f"{block}.self_attn", DIM)
            attention_state(state, f"{block}.cross_attn_token_to_image", DIM // 2)
            attention_state(state, f"{block}.cross_attn_image_to_token", DIM // 2)
            linear(state, f"{block}.mlp.lin1", DIM, 2048)
            linear(state, f"{block}.mlp.lin2", 2048, DIM)
            for number in range(1, 5):
                norm(state, f"{block}.norm{number}", DIM)
        attention_state(state, f"{decoder}.transformer.{level}.final_attn_token_to_image", DIM // 2)
        norm(state, f"{decoder}.transformer.{level}.norm_final_attn", DIM)
    for name, rows in {"iou_token": 1, "mask_tokens": 4, "level_embed": 2}.items():
        state[f"{decoder}.{name}.weight"] = torch.randn(rows, DIM)
    for name, narrow in {"output_upscaling": DIM // 8, "upsample_2x": DIM}.items():
        state[f"{decoder}.{name}.0.weight"] = torch.randn(DIM, narrow, 2, 2) / DIM**0.5
        state[f"{decoder}.{name}.0.bias"] = torch.randn(narrow) * 0.1
        norm(state, f"{decoder}.{name}.1", narrow)
    state[f"{decoder}.pe1.positional_encoding_gaussian_matrix"] = torch.randn(2, DIM // 2)
    heads = {f"output_hypernetworks_mlps.{i}": DIM // 8 for i in range(4)} | {"iou_prediction_head": 4}
    for name, outputs in heads.items():
        for number, width in enumerate((DIM, DIM, outputs)):
            linear(state, f"{decoder}.{name}.layers.{number}", DIM, width)


def attention_state(state, name, inner):
    for part in "qkv":
        linear(state, f"{name}.{part}_proj", DIM, inner)
    linear(state, f"{name}.out_proj", inner, DIM)


# ---- files

LLAMA = {
    "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "max_position_embeddings": 400, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
CONFIG = LLAMA | {
    "architectures": ["PixelLMForCausalLM"], "model_type": "llava", "out_dim": DIM, "mm_hidden_size": CHANNELS,
    "mm_vision_select_layer": -2, "mm_use_im_start_end": True, "image_feature_scale_num": 2,
    "resize_vision_tower_size": SIDE, "separate_mm_projector": True, "transformers_version": "4.31.0",
}  # fmt: skip


def tower():
    torch.manual_seed(8)
    config = CLIPVisionConfig(
        hidden_size=CHANNELS, intermediate_size=20, num_hidden_layers=TOWER_LAYERS, num_attention_heads=2,
        image_size=OLD_GRID * PATCH, patch_size=PATCH,
    )  # fmt: skip
    made = CLIPVisionModel(config).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.3)
    return made


def write(folder, tokenizer, state, config=CONFIG):
    """The checkpoint as `save_pretrained` of the release leaves it, in two files of safetensors."""
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        tensors = {n: state[n] for n in part}
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})


# ---- forward, block by block; W is the released state


def resized(positions):
    """Rows 0 … n−2 are stretched as if they were the patches, row n−1 follows as if it were the class token's."""
    patches = positions[:-1].reshape(OLD_GRID, OLD_GRID, -1).permute(2, 0, 1)[None]
    new = F.interpolate(patches, size=(GRID, GRID), mode="bilinear", align_corners=False)[0]
    return torch.cat([new.permute(1, 2, 0).reshape(GRID * GRID, -1), positions[-1:]])


def patch_mask(height, width):
    """1 where a patch's first pixel is inside the resized picture, (GRID, GRID)."""
    mask = torch.zeros(GRID, GRID)
    for row in range(GRID):
        for column in range(GRID):
            mask[row, column] = float(row * PATCH < height and column * PATCH < width)
    return mask


def tower_states(clip, pixels, mask):
    """Hidden states before, between and after CLIP's layers, with keys of padded patches taken out of each softmax."""
    state = clip.state_dict()
    patches = F.conv2d(pixels, state["embeddings.patch_embedding.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + resized(state["embeddings.position_embedding.weight"])

    def normed(x, name):
        return F.layer_norm(x, (CHANNELS,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def lin(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = normed(x, "pre_layrnorm")
    keys = torch.cat([torch.ones(1), mask.flatten()]).bool()
    states = [x]
    for layer in range(TOWER_LAYERS):
        name = f"encoder.layers.{layer}"
        y = normed(x, f"{name}.layer_norm1")
        q, k, v = (
            lin(y, f"{name}.self_attn.{part}_proj").reshape(len(x), -1, 2, CHANNELS // 2).transpose(1, 2)
            for part in "qkv"
        )
        scores = (q @ k.transpose(-1, -2) / (CHANNELS // 2) ** 0.5).masked_fill(~keys, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + lin(y, f"{name}.self_attn.out_proj")
        y = lin(normed(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        x = x + lin(y * torch.sigmoid(1.702 * y), f"{name}.mlp.fc2")
        states.append(x)
    return states


def lin(W, name, x):
    return x @ W[f"{name}.weight"].T + W[f"{name}.bias"]


def projector(W, name, x):
    return lin(W, f"{name}.2", F.gelu(lin(W, f"{name}.0", x)))


def picture_tokens(W, deep):
    """(P, C) patch states to (P/4, H): bilinear to half the side means the mean of each 2 × 2 patches."""
    grid = deep.reshape(GRID // 2, 2, GRID // 2, 2, CHANNELS).mean((1, 3)).reshape(-1, CHANNELS)
    return projector(W, "model.mm_projector", grid)


def channel_norm(W, name, x):
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    scale, shift = (W[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean) / (variance + 1e-6).sqrt() * scale + shift


def neck(W, states):
    """(P, C) patch states to one map (1, D, GRID, GRID): projector of pixels, 1 × 1, norm, 3 × 3, norm."""
    x = projector(W, "model.out_mm_projector", states).T.reshape(1, HIDDEN, GRID, GRID)
    name = "model.image_feature_neck"
    x = channel_norm(W, f"{name}.1", F.conv2d(x, W[f"{name}.0.weight"]))
    return channel_norm(W, f"{name}.3", F.conv2d(x, W[f"{name}.2.weight"], padding=1))


def fused(W, states):
    """States of a target's six tokens (T, 6, H) to (T, 2, D): the sum of three, each times 1/6."""
    name = "model.text_hidden_fcs.0"
    h = lin(W, f"{name}.2", lin(W, f"{name}.0", states).relu()).reshape(len(states), 2, 3, DIM)
    return (h[:, :, 0] + h[:, :, 1] + h[:, :, 2]) / 6


def fourier(gaussian, side):
    """SAM's positional code of a square grid, (D, side, side)."""
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y = centres.expand(side, side), centres[:, None].expand(side, side)
    phase = 2 * torch.pi * (x[..., None] * gaussian[0] + y[..., None] * gaussian[1])
    return torch.cat([phase.sin(), phase.cos()], -1).permute(2, 0, 1)


def prompts(W, embedding, side):
    """Sparse (T, 1, D), dense (T, D, side, side)."""
    none = W["model.prompt_encoder.no_mask_embed.weight"][0]
    return embedding[:, None], none[None, :, None, None].expand(len(embedding), -1, side, side)


def attention(W, name, q, k, v):
    q, k, v = lin(W, f"{name}.q_proj", q), lin(W, f"{name}.k_proj", k), lin(W, f"{name}.v_proj", v)
    width = q.shape[-1] // HEADS
    out = []
    for head in range(HEADS):
        own = slice(head * width, (head + 1) * width)
        weights = (q[..., own] @ k[..., own].transpose(-1, -2) / width**0.5).softmax(-1)
        out.append(weights @ v[..., own])
    return lin(W, f"{name}.out_proj", torch.cat(out, -1))


def two_way(W, name, tokens, image, code):
    """SAM's two-way transformer: tokens (T, N, D), image and code (T, P, D)."""

    def normed(x, part):
        return F.layer_norm(x, (DIM,), W[f"{part}.weight"], W[f"{part}.bias"])

    prompt = tokens
    for layer in range(2):
        block = f"{name}.layers.{layer}"
        if layer == 0:
            tokens = attention(W, f"{block}.self_attn", tokens, tokens, tokens)
        else:
            q = tokens + prompt
            tokens = tokens + attention(W, f"{block}.self_attn", q, q, tokens)
        tokens = normed(tokens, f"{block}.norm1")
        tokens = tokens + attention(W, f"{block}.cross_attn_token_to_image", tokens + prompt, image + code, image)
        tokens = normed(tokens, f"{block}.norm2")
        tokens = tokens + lin(W, f"{block}.mlp.lin2", lin(W, f"{block}.mlp.lin1", tokens).relu())
        tokens = normed(tokens, f"{block}.norm3")
        image = image + attention(W, f"{block}.cross_attn_image_to_token", image + code, tokens + prompt, tokens)
        image = normed(image, f"{block}.norm4")
    last = attention(W, f"{name}.final_attn_token_to_image", tokens + prompt, image + code, image)
    return normed(tokens + last, f"{name}.norm_final_attn"), image


def doubled(W, name, x):
    """2 × 2 transposed convolution with stride 2, channel norm, GELU: each pixel becomes four."""
    weight, bias = W[f"{name}.0.weight"], W[f"{name}.0.bias"]
    tiles = torch.einsum("tchw,cdij->tdhiwj", x, weight)
    x = tiles.reshape(len(x), -1, 2 * x.shape[2], 2 * x.shape[3]) + bias[:, None, None]
    return F.gelu(channel_norm(W, f"{name}.1", x))


def decoded(W, level, features, embedding, previous=None):
    """One level: features (1, D, GRID, GRID), embedding (T, D), the mask before it (T, 2·GRID, 2·GRID)."""
    name, side = "model.mask_decoder", GRID
    sparse, dense = prompts(W, embedding, side)
    image = features.repeat(len(embedding), 1, 1, 1)
    gaussian = W["model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    if level == 1:
        side *= 2
        image = doubled(W, f"{name}.upsample_2x", image) * (previous.sigmoid() + 1)[:, None]
        gaussian = W[f"{name}.pe1.positional_encoding_gaussian_matrix"]
        dense = F.interpolate(dense, size=(side, side), mode="bilinear", align_corners=False)
    image = (image + dense).flatten(2).transpose(1, 2)
    own = torch.cat([W[f"{name}.iou_token.weight"], W[f"{name}.mask_tokens.weight"]]).repeat(len(embedding), 1, 1)
    tokens = torch.cat([own, sparse], 1) + W[f"{name}.level_embed.weight"][level]
    code = fourier(gaussian, side).flatten(1).T.expand_as(image)
    tokens, image = two_way(W, f"{name}.transformer.{level}", tokens, image, code)
    image = doubled(W, f"{name}.output_upscaling", image.transpose(1, 2).reshape(len(embedding), DIM, side, side))
    x = tokens[:, 1]
    for number in range(3):
        x = lin(W, f"{name}.output_hypernetworks_mlps.0.layers.{number}", x)
        x = x.relu() if number < 2 else x
    return (x[:, :, None, None] * image).sum(1)


def masks(W, maps, embeddings):
    """Two maps (1, D, GRID, GRID) and embeddings (T, 2, D) to logits (T, 4·GRID, 4·GRID)."""
    coarse = decoded(W, 0, maps[0], embeddings[:, 0])
    fine = decoded(W, 1, maps[1], embeddings[:, 1], coarse)
    up = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return 0.5 * up + 0.5 * fine


def hidden_states(W, inputs_embeds, seen):
    """LLaMA's last states after its norm (S, H); columns that are not `seen` (S,) are hidden from every other."""
    x, length = inputs_embeds, len(inputs_embeds)

    def rms(x, name):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * W[f"{name}.weight"]

    width = HIDDEN // HEADS
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def rotated(x):
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return x * cos + torch.cat([-second, first], -1) * sin

    allowed = torch.ones(length, length).tril().bool() & (seen | torch.eye(length).bool())
    for layer in range(LLAMA["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        y = rms(x, f"{name}.input_layernorm")
        q, k, v = (
            (y @ W[f"{name}.self_attn.{p}_proj.weight"].T).reshape(length, HEADS, width).transpose(0, 1) for p in "qkv"
        )
        scores = (rotated(q) @ rotated(k).transpose(-1, -2) / width**0.5).masked_fill(~allowed, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, HIDDEN)
        x = x + y @ W[f"{name}.self_attn.o_proj.weight"].T
        y = rms(x, f"{name}.post_attention_layernorm")
        gate, up = (y @ W[f"{name}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ W[f"{name}.mlp.down_proj.weight"].T
    return rms(x, "model.norm")
