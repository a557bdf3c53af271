"""What the medical tests share: a tiny configuration of every network, with odd numbers of channels where it can."""

import pytest

from popen.medical.configuration import SegmenterConfig

OPTIONS = {
    "unet": {"channels": (5, 9, 13), "num_res_units": 1},
    "attention_unet": {"channels": (5, 9, 13)},
    "segresnet": {"init_filters": 5, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
    "unetr": {"feature_size": 5, "hidden_size": 22, "mlp_dim": 24, "num_heads": 2},
    "swin_unetr": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
    "residual_encoder_unet": {"features_per_stage": (5, 9, 13), "n_blocks_per_stage": 1},
    "plain_conv_unet": {"features_per_stage": (5, 9, 13), "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1},
    "smp_unet": {"encoder_name": "timm-mobilenetv3_small_minimal_100", "decoder_channels": (9, 9, 7, 7, 5)},
    "transattunet": {"channels": (5, 9, 12)},
}


@pytest.fixture(scope="session")
def tiny_config():
    """Called with a network's name and dimensions: 32 pixels, 16 voxels, as few more as Swin UNETR needs."""

    def make(network: str, dims: int = 2, **changes) -> SegmenterConfig:
        patch = (32, 32) if dims == 2 else (16, 16, 16)
        options = dict(OPTIONS[network])
        if network == "swin_unetr":
            patch = (64, 32) if dims == 2 else (32, 32, 32)
            options |= {"norm": "batch"} if dims == 3 else {}
        values = {"dropout": 0.2, "patch_size": patch, "options": options | changes.pop("options", {})} | changes
        return SegmenterConfig(network, dims, 3, ("liver", "tumour"), "sigmoid", **values)

    return make
