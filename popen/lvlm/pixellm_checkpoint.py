"""A released PixelLM becomes a popen model: weights renamed, the tower resized, the missing constants written."""

from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig

from popen.data.safe_io import DataError, storage_error, write_json
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.pixellm_keys import popen_name
from popen.lvlm.pixellm_release import SCALES, Release, open_release, released_processor
from popen.lvlm.pixellm_tower import load_tower, resized_positions
from popen.lvlm.preference_head import PreferenceHead
from popen.lvlm.processing_popen import PopenProcessor

TOWER = "openai/clip-vit-large-patch14-336"
SHARD = "5GB"
SHALLOW = -11  # the second map's layer, written into PixelLM's code
DECODER = {"decoder_depth": 2, "decoder_heads": 8, "decoder_mlp_dim": 2048}  # likewise
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOWER_NAME = "backbone.model.vision_tower."
OWN = (TOWER_NAME, "preference_head.", "codebook.fusion", "mask_decoder.scale_weights")
POSITIONS = TOWER_NAME + "embeddings.position_embedding.weight"
WORDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_theta", "rope_scaling",
)  # fmt: skip


def convert(source: str | Path, destination: str | Path, vision_tower: str = TOWER) -> PopenProcessor:
    """Writes a popen model folder from a released PixelLM; needs memory for one shard of 5 GB.

    Args:
        source: the checkpoint's folder, or the repository's with `hf_model` in it.
        destination: a new or empty folder.
        vision_tower: the CLIP tower that PixelLM was trained with, a folder or a Hub id.
    Returns:
        The processor that was written.
    Raises:
        DataError: the checkpoint is none of PixelLM's, a weight is missing, unexpected or of another shape (each is
            named), the tower is another one, or `destination` is not empty. StorageError: it cannot be written.
    """
    folder = Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already there; give a new folder")
    release = open_release(source)
    tower = load_tower(vision_tower)
    config, processor = popen_config(release, tower.config)
    with torch.device("meta"):
        model = PopenForReasoningSegmentation(config)
    dtype = release.tensor(EMBEDDINGS).dtype
    wanted = model.to(dtype).state_dict()
    names = checked_names(release, wanted)
    own = own_weights(config, tower, wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder, release, wanted, names, own, dtype)
        processor.save_pretrained(folder)
        config.dtype, config.architectures = dtype, [type(model).__name__]
        config.save_pretrained(folder)  # last: a folder without it is refused as unfinished
    except OSError as error:
        raise storage_error(error, folder, "the folder is incomplete") from error
    return processor


def popen_config(release: Release, tower: CLIPVisionConfig) -> tuple[PopenConfig, PopenProcessor]:
    """The configuration and the processor of the popen model that means the same.

    Raises:
        DataError: the checkpoint's configuration lacks something, or the tower does not fit it.
    """
    raw = release.config
    try:
        side, dim, channels = raw["resize_vision_tower_size"], raw["out_dim"], raw["mm_hidden_size"]
        select = raw["mm_vision_select_layer"]
        text = {key: raw[key] for key in WORDS if raw.get(key) is not None}
        length = raw["max_position_embeddings"]
        heads = raw["num_attention_heads"]
    except KeyError as error:
        raise DataError(f"{release.folder}/config.json: no {error.args[0]} in it; fetch it again") from None
    if raw.get("image_feature_scale_num") != SCALES:
        raise DataError(
            f"{release.folder}/config.json: image_feature_scale_num is {raw.get('image_feature_scale_num')}; "
            f"every released PixelLM has {SCALES}"
        )
    if (channels, side % (2 * tower.patch_size)) != (tower.hidden_size, 0):
        raise DataError(
            f"--vision-tower: {tower.hidden_size} channels in patches of {tower.patch_size}; the checkpoint was "
            f"trained on a tower of {channels} channels and pictures of {side} pixels; give that one"
        )
    processor = released_processor(release, side, tower.patch_size, length)
    words = processor.tokenizer
    vision = CLIPVisionConfig.from_dict(tower.to_dict() | {"image_size": side})
    ids = {name: getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    backbone = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(
            vocab_size=len(words),
            **{"num_key_value_heads": heads} | text,
            **{f"{name}_token_id": value for name, value in ids.items()},
        ),
        image_token_index=words.convert_tokens_to_ids(processor.backbone.image_token),
        vision_feature_layer=select,
        image_seq_length=processor.picture_tokens,
    )
    config = PopenConfig(
        backbone_config=backbone,
        pixellm_compat=True,
        pixel_layers=[select, SHALLOW],
        image_size=side,
        seg_token_ids=list(processor.seg_token_ids),
        tokens_per_scale=len(processor.seg_token_ids) // SCALES,
        scales=SCALES,
        decoder_dim=dim,
        quality_weight=0.0,  # PixelLM's confidence is read off the mask, nothing predicts it
        **DECODER,
    )
    return config, processor


def checked_names(release: Release, wanted: dict[str, torch.Tensor]) -> dict[str, str]:
    """popen's name to the released one, for every weight that the checkpoint gives.

    Args:
        wanted: the popen model's weights; only their shapes are read.
    Raises:
        DataError: names every weight that is missing, unexpected or of another shape than `wanted`'s.
    """
    names, problems = {}, []
    for released in sorted(release.files):
        try:
            name = popen_name(released)
        except KeyError:
            name = "?"
        if name is None:
            continue
        if name not in wanted:
            problems.append(f"unexpected {released}")
            continue
        names[name] = released
        shape, expected = release.shape(released), tuple(wanted[name].shape)
        if released in (EMBEDDINGS, HEAD):
            expected = (expected[0] - 1, *expected[1:])  # `<image>` is popen's
        if shape != expected:
            problems.append(f"{released} is {shape}, not {expected}")
    missing = sorted(n for n in wanted if n not in names and not n.startswith(OWN))
    problems += [f"missing what becomes {name}" for name in missing]
    if problems:
        raise DataError(f"{release.folder}: not the weights of its config.json: {'; '.join(problems)}")
    return names


def own_weights(
    config: PopenConfig, tower: CLIPVisionModel, wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the checkpoint does not hold: the tower, the two constants of the code, and a fresh preference head.

    Raises:
        DataError: the tower's weights are not those that its configuration makes.
    """
    vision = {TOWER_NAME + name: tensor for name, tensor in tower.state_dict().items()}
    patches = (config.image_size // tower.config.patch_size) ** 2
    vision[POSITIONS] = resized_positions(vision[POSITIONS], patches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = PreferenceHead(config.decoder_dim, config.scales)
    own = vision | {
        "codebook.fusion": torch.full((SCALES, config.tokens_per_scale), 1 / (SCALES * config.tokens_per_scale)),
        "mask_decoder.scale_weights": torch.full((SCALES,), 1 / SCALES),
        **{f"preference_head.{name}": tensor for name, tensor in head.state_dict().items()},
    }
    wrong = [n for n in wanted if n.startswith(OWN) and (n not in own or own[n].shape != wanted[n].shape)]
    if wrong:
        raise DataError(
            f"--vision-tower: it does not give {', '.join(wrong)} as its configuration says; fetch it again"
        )
    return {name: tensor for name, tensor in own.items() if name in wanted}


def _write_weights(folder: Path, release: Release, wanted, names, own, dtype: torch.dtype) -> None:
    plan = split_torch_state_dict_into_shards(
        wanted, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD
    )
    bar = tqdm(total=len(wanted), desc="weights", disable=None)
    for file, inside in plan.filename_to_tensors.items():
        tensors = {}
        for name in inside:
            bar.update()
            tensor = own[name] if name in own else release.tensor(names[name])
            if names.get(name) in (EMBEDDINGS, HEAD):
                tensor = with_picture_token(tensor)
            tensors[name] = tensor.to(dtype).contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    bar.close()
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def with_picture_token(rows_VH: torch.Tensor) -> torch.Tensor:
    """One row more, for `<image>`: that of the unknown token (0), which the model was never taught to say."""
    return torch.cat([rows_VH, rows_VH[:1]])
