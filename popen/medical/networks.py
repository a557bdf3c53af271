"""Networks by name: a function each, whose keyword arguments are the options of a configuration.

Libraries are imported where they are used: MONAI alone takes seconds. Dropout stands where each library puts it; where
it has no place for it (`segresnet` drops its first convolution only, `smp_unet` nothing) it is injected.
"""

import inspect
import math
from collections.abc import Callable, Sequence

from torch import nn

from popen.data.safe_io import DataError
from popen.medical.configuration import SegmenterConfig
from popen.medical.dropout import inject_dropout
from popen.medical.transattunet import TransAttUNet

CHANNELS = (16, 32, 64, 128, 256)


def build_network(config: SegmenterConfig) -> nn.Module:
    """An untrained network from pictures (B, C, *spatial) to logits (B, K, *spatial), or to a list of logits with the
    full resolution first where deep supervision was asked for.

    Returns:
        The module; its `size_divisor` says by what each side of a picture must be divisible.
    Raises:
        DataError: an unknown network or option, an option's value that it refuses, a patch size that does not fit, or
            a library that is not installed.
    """
    if config.network not in NETWORKS:
        raise DataError(f"network {config.network!r} is unknown; there are {', '.join(NETWORKS)}")
    build = NETWORKS[config.network]
    known = list(inspect.signature(build).parameters)[1:]
    for option in config.options:
        if option not in known:
            raise DataError(f"network {config.network} has no option {option!r}; it has {', '.join(known)}")
    try:
        return build(config, **config.options)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"network {config.network}: {error}; install popen-seg[medical]") from error
    except (TypeError, ValueError, KeyError, IndexError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"network {config.network} refuses its options ({reason}); correct {config.options}"
        ) from error


def unet(
    config: SegmenterConfig,
    channels: Sequence[int] = CHANNELS,
    strides: Sequence | None = None,
    kernel_size: int | Sequence[int] = 3,
    up_kernel_size: int | Sequence[int] = 3,
    num_res_units: int = 2,
    act: str = "prelu",
    norm: str = "instance",
) -> nn.Module:
    """MONAI's U-Net with residual units; `strides` between levels, 2 by default, or one number per axis."""
    from monai.networks.nets import UNet

    strides = _strides(config, channels, strides)
    divisor = _divisor(config, strides, least=2 if norm == "instance" else 1)
    network = UNet(
        config.spatial_dims,
        config.in_channels,
        len(config.regions),
        channels,
        strides,
        kernel_size=kernel_size,
        up_kernel_size=up_kernel_size,
        num_res_units=num_res_units,
        act=act,
        norm=norm,
        dropout=config.dropout,
    )
    return _divided(network, divisor)


def attention_unet(
    config: SegmenterConfig,
    channels: Sequence[int] = CHANNELS,
    strides: Sequence | None = None,
    kernel_size: int | Sequence[int] = 3,
    up_kernel_size: int | Sequence[int] = 3,
) -> nn.Module:
    """MONAI's Attention U-Net (Oktay et al. 2018), with BatchNorm."""
    from monai.networks.nets import AttentionUnet

    strides = _strides(config, channels, strides)
    if min(channels) < 2:
        raise DataError(f"network attention_unet: channels {tuple(channels)}, at least 2 each, half of them gate")
    network = AttentionUnet(
        config.spatial_dims,
        config.in_channels,
        len(config.regions),
        channels,
        strides,
        kernel_size=kernel_size,
        up_kernel_size=up_kernel_size,
        dropout=config.dropout,
    )
    return _divided(network, _divisor(config, strides))


def segresnet(
    config: SegmenterConfig,
    init_filters: int = 16,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    upsample_mode: str = "nontrainable",
) -> nn.Module:
    """MONAI's SegResNet (Myronenko 2018) without the autoencoder; levels double the filters and halve the picture."""
    from monai.networks.nets import SegResNet

    if len(blocks_up) != len(blocks_down) - 1:
        raise DataError(f"network segresnet: blocks_up {tuple(blocks_up)} must have one less than blocks_down")
    divisor = _divisor(config, [(2,) * config.spatial_dims] * len(blocks_up))
    network = SegResNet(
        config.spatial_dims,
        init_filters,
        config.in_channels,
        len(config.regions),
        norm=("group", {"num_groups": math.gcd(8, init_filters)}),
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        upsample_mode=upsample_mode,
    )
    if config.dropout:
        inject_dropout(network, config.dropout)
    return _divided(network, divisor)


def unetr(
    config: SegmenterConfig,
    feature_size: int = 16,
    hidden_size: int = 192,
    mlp_dim: int = 768,
    num_heads: int = 6,
    norm: str = "instance",
    qkv_bias: bool = False,
) -> nn.Module:
    """MONAI's UNETR (Hatamizadeh et al. 2021), a ViT of 12 layers; it takes pictures of the patch size only."""
    from monai.networks.nets import UNETR

    _divisor(config, [(16,) * config.spatial_dims])
    network = UNETR(
        config.in_channels,
        len(config.regions),
        config.patch_size,
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        norm_name=norm,
        dropout_rate=config.dropout,
        spatial_dims=config.spatial_dims,
        qkv_bias=qkv_bias,
    )
    for block in network.vit.blocks:  # MONAI builds this norm without the attention that would use it; see DDP below
        block.norm_cross_attn.requires_grad_(False)
    return _divided(network, config.patch_size)


def swin_unetr(
    config: SegmenterConfig,
    feature_size: int = 24,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int | Sequence[int] = 7,
    attn_drop_rate: float = 0.0,
    dropout_path_rate: float = 0.0,
    norm: str = "instance",
    use_checkpoint: bool = False,
    use_v2: bool = False,
) -> nn.Module:
    """MONAI's Swin UNETR (Hatamizadeh et al. 2022); `feature_size` a multiple of 12, sides multiples of 32."""
    from monai.networks.nets import SwinUNETR

    divisor = _divisor(config, [(32,) * config.spatial_dims], least=2 if norm == "instance" else 1)
    network = SwinUNETR(
        config.in_channels,
        len(config.regions),
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        feature_size=feature_size,
        norm_name=norm,
        drop_rate=config.dropout,
        attn_drop_rate=attn_drop_rate,
        dropout_path_rate=dropout_path_rate,
        use_checkpoint=use_checkpoint,
        spatial_dims=config.spatial_dims,
        use_v2=use_v2,
    )
    return _divided(network, divisor)


def residual_encoder_unet(
    config: SegmenterConfig,
    features_per_stage: Sequence[int] = CHANNELS,
    strides: Sequence | None = None,
    kernel_sizes: int | Sequence = 3,
    n_blocks_per_stage: int | Sequence[int] = 2,
    n_conv_per_stage_decoder: int | Sequence[int] = 1,
    deep_supervision: bool = False,
) -> nn.Module:
    """nnU-Net's residual encoder U-Net (Isensee et al. 2024), with the names of its plans; the first stride is 1.

    With `deep_supervision` it gives the logits of every decoder stage, the full resolution first.
    """
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    depths = n_blocks_per_stage, n_conv_per_stage_decoder
    return _nnunet(ResidualEncoderUNet, config, features_per_stage, strides, kernel_sizes, depths, deep_supervision)


def plain_conv_unet(
    config: SegmenterConfig,
    features_per_stage: Sequence[int] = CHANNELS,
    strides: Sequence | None = None,
    kernel_sizes: int | Sequence = 3,
    n_conv_per_stage: int | Sequence[int] = 2,
    n_conv_per_stage_decoder: int | Sequence[int] = 2,
    deep_supervision: bool = False,
) -> nn.Module:
    """nnU-Net's U-Net of plain convolutions (Isensee et al. 2021), otherwise as `residual_encoder_unet`."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    depths = n_conv_per_stage, n_conv_per_stage_decoder
    return _nnunet(PlainConvUNet, config, features_per_stage, strides, kernel_sizes, depths, deep_supervision)


def _nnunet(
    kind: type[nn.Module],
    config: SegmenterConfig,
    features: Sequence[int],
    strides: Sequence | None,
    kernel_sizes: int | Sequence,
    depths: tuple,
    deep_supervision: bool,
) -> nn.Module:
    """Both networks of nnU-Net have the same arguments; `depths` are those of encoder and decoder."""
    if strides is not None and len(strides) == len(features):
        if strides[0] not in (1, (1,) * config.spatial_dims):
            raise DataError(f"network {config.network}: strides {strides} must begin with 1, the full resolution")
        strides = strides[1:]
    between = _strides(config, features, strides)
    divisor = _divisor(config, between, least=2)
    three = config.spatial_dims == 3
    dropout = (nn.Dropout3d if three else nn.Dropout2d) if config.dropout else None
    network = kind(
        config.in_channels,
        len(features),
        list(features),
        nn.Conv3d if three else nn.Conv2d,
        kernel_sizes,
        [(1,) * config.spatial_dims, *between],
        depths[0],
        len(config.regions),
        depths[1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if three else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=dropout,
        dropout_op_kwargs={"p": config.dropout} if dropout else None,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )
    network.apply(network.initialize)
    if not deep_supervision:  # the coarse outputs exist for checkpoints' sake; DDP must not wait for their gradients
        for layer in network.decoder.seg_layers[:-1]:
            layer.requires_grad_(False)
    return _divided(network, divisor)


def smp_unet(
    config: SegmenterConfig,
    encoder_name: str = "resnet34",
    encoder_weights: str | None = None,
    encoder_depth: int = 5,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_use_norm: str = "batchnorm",
    decoder_attention_type: str | None = None,
) -> nn.Module:
    """The U-Net of segmentation_models_pytorch around any of its encoders, 2-D, for pictures of any size.

    Dropout is injected into the decoder only: hypotheses share one pass of the encoder, and what it learned elsewhere
    stays whole. `encoder_weights` ("imagenet", ...) are fetched once, as safetensors, when the network is first built.
    """
    if config.spatial_dims != 2:
        volumes = ", ".join(name for name in NETWORKS if name != "smp_unet")
        raise DataError(f"network smp_unet is 2-D only, spatial_dims is {config.spatial_dims}; take one of {volumes}")
    if encoder_weights is not None and encoder_name.startswith("tu-"):
        raise DataError(f"encoder_weights of {encoder_name}: timm's may be pickled and are not read; take null")
    import segmentation_models_pytorch as smp

    network = smp.Unet(
        encoder_name,
        encoder_depth,
        encoder_weights,
        decoder_use_norm=decoder_use_norm,
        decoder_channels=decoder_channels,
        decoder_attention_type=decoder_attention_type,
        in_channels=config.in_channels,
        classes=len(config.regions),
    )
    if config.dropout:
        inject_dropout(network.decoder, config.dropout)
    return _divided(network, (1, 1))


def transattunet(
    config: SegmenterConfig, channels: Sequence[int] = CHANNELS, heads: int = 4, norm: str = "batch"
) -> nn.Module:
    """TransAttUNet as in `popen.medical.transattunet`, for pictures of any size from 2^(levels − 1)."""
    _strides(config, channels, None)
    if min(config.patch_size) < 2 ** (len(channels) - 1):
        raise DataError(
            f"patch_size {config.patch_size} of network transattunet: {len(channels)} levels need sides of "
            f"{2 ** (len(channels) - 1)} or more; take fewer channels"
        )
    network = TransAttUNet(
        config.spatial_dims, config.in_channels, len(config.regions), channels, heads, norm, config.dropout
    )
    return _divided(network, (1,) * config.spatial_dims)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "attention_unet": attention_unet,
    "segresnet": segresnet,
    "unetr": unetr,
    "swin_unetr": swin_unetr,
    "residual_encoder_unet": residual_encoder_unet,
    "plain_conv_unet": plain_conv_unet,
    "smp_unet": smp_unet,
    "transattunet": transattunet,
}


def _strides(config: SegmenterConfig, channels: Sequence[int], strides: Sequence | None) -> list[tuple[int, ...]]:
    """Strides between levels, per axis; refuses levels that a network cannot have."""
    if len(channels) < 2 or min(channels) < 1:
        raise DataError(f"network {config.network}: channels {tuple(channels)} must be two or more, each at least 1")
    steps = [2] * (len(channels) - 1) if strides is None else strides
    if len(steps) != len(channels) - 1:
        raise DataError(
            f"network {config.network}: strides {tuple(steps)} for {len(channels)} levels; there must be "
            f"{len(channels) - 1}, one between each two"
        )
    spread = [(step,) * config.spatial_dims if isinstance(step, int) else tuple(step) for step in steps]
    if any(len(step) != config.spatial_dims or min(step) < 1 for step in spread):
        raise DataError(
            f"network {config.network}: strides {tuple(steps)} must be at least 1, one number or one per axis"
        )
    return spread


def _divisor(config: SegmenterConfig, strides: Sequence[Sequence[int]], least: int = 1) -> tuple[int, ...]:
    """By what the sides must be divisible; refuses a patch size that is not, or leaves less than `least` voxels."""
    divisor = tuple(math.prod(axis) for axis in zip(*strides, strict=True))
    if any(side % by for side, by in zip(config.patch_size, divisor, strict=True)):
        fitting = tuple(max(math.ceil(side / by), 1) * by for side, by in zip(config.patch_size, divisor, strict=True))
        raise DataError(
            f"patch_size {config.patch_size} of network {config.network}: sides must be divisible by {divisor}; "
            f"take {fitting}"
        )
    if math.prod(config.patch_size) // math.prod(divisor) < least:
        raise DataError(
            f"patch_size {config.patch_size} of network {config.network}: one voxel is left at the deepest level, "
            f"which instance norm cannot scale; take {tuple(2 * side for side in config.patch_size)} or fewer levels"
        )
    return divisor


def _divided(network: nn.Module, divisor: tuple[int, ...]) -> nn.Module:
    network.size_divisor = divisor  # the segmenter checks pictures by it, inference pads to it
    return network
