"""A configuration comes back from JSON as it was, and refuses what no segmenter can be."""

import json

import pytest

from popen.data.safe_io import DataError
from popen.medical.configuration import SegmenterConfig

GOOD = {
    "network": "unet",
    "spatial_dims": 3,
    "in_channels": 4,
    "regions": ("background", "oedema", "core"),
    "activation": "softmax",
    "patch_size": (32, 48, 32),
    "dropout": 0.1,
    "threshold": -0.25,
    "spacing": (1.0, 1.0, 2.5),
    "options": {"channels": [8, 16], "strides": [[2, 2, 1]], "norm": None},
    "flips_threshold": 0.5,
    "label_ids": ((0,), (2,), (1, 4)),
}


def test_json_brings_back_an_equal_configuration():
    config = SegmenterConfig(**GOOD)
    assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict())), "config.json") == config
    assert config.options == {"channels": (8, 16), "strides": ((2, 2, 1),), "norm": None}


def test_defaults():
    config = SegmenterConfig("unet", 2, 1, ("polyp",), "sigmoid", (64, 64))
    assert (config.dropout, config.threshold, config.spacing, config.options) == (0.0, 0.0, None, {})
    assert (config.flips_threshold, config.label_ids) == (None, None)


def test_regions_are_numbered_by_their_place_unless_the_data_set_has_ids():
    assert SegmenterConfig("unet", 2, 1, ("a", "b"), "sigmoid", (64, 64)).ids == ((1,), (2,))
    assert SegmenterConfig(**GOOD | {"label_ids": None}).ids == ((0,), (1,), (2,))
    assert SegmenterConfig(**GOOD).ids == ((0,), (2,), (1, 4))


def test_flips_have_a_threshold_of_their_own_where_one_was_found():
    config = SegmenterConfig(**GOOD)
    assert (config.threshold_of(flips=False), config.threshold_of(flips=True)) == (-0.25, 0.5)
    assert SegmenterConfig(**GOOD | {"flips_threshold": None}).threshold_of(flips=True) == -0.25


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("network", "", "network '' must be"),
        ("spatial_dims", 4, "spatial_dims 4 must be 2 or 3"),
        ("spatial_dims", "2", "spatial_dims '2' must be 2 or 3"),
        ("in_channels", 0, "in_channels 0 must be a whole number"),
        ("in_channels", True, "in_channels True must be"),
        ("regions", "core", "regions 'core' must be one or more names"),
        ("regions", (), r"regions \(\) must be"),
        ("regions", ("background", "a", "a"), "each once"),
        ("regions", ("a", "b"), "must begin with 'background'"),
        ("regions", ("background",), "go on with another"),
        ("activation", "tanh", "activation 'tanh' must be sigmoid or softmax"),
        ("patch_size", (32, 32), "must be 3 whole numbers"),
        ("patch_size", (32, 32, 0.5), "must be 3 whole numbers"),
        ("dropout", 1.0, r"dropout 1.0 must be a share in \[0, 1\)"),
        ("dropout", float("nan"), "dropout nan must be"),
        ("threshold", float("inf"), "threshold inf must be a finite logit"),
        ("flips_threshold", "0", "flips_threshold '0' must be a finite logit, or null"),
        ("label_ids", ((0,), (1,)), "must be ids from 0 to 255 for each of 3 regions"),
        ("label_ids", ((0,), (1,), ()), "must be ids from 0 to 255"),
        ("label_ids", (0, 1, 2), "must be ids from 0 to 255"),
        ("label_ids", ((0,), (1,), (256,)), "must be ids from 0 to 255"),
        ("spacing", (1.0, 0.0, 1.0), "must be 3 millimetres above 0"),
        ("spacing", 1.0, "must be 3 millimetres"),
        ("options", ["channels"], "must be a dict"),
        ("options", {"channels": {3}}, r"option 'channels' is \{3\}"),
        ("options", {"channels": [8, float("nan")]}, "option 'channels' is nan"),
    ],
)
def test_bad_values_are_refused_by_name(key, value, message):
    with pytest.raises(DataError, match=message) as error:
        SegmenterConfig(**(GOOD | {key: value}))
    assert "\n" not in str(error.value)


def test_errors_of_a_file_name_it():
    with pytest.raises(DataError, match=r"a/config.json: unknown key 'chanels'; a segmenter has activation, dropout"):
        SegmenterConfig.from_dict(GOOD | {"chanels": 3}, "a/config.json")
    with pytest.raises(DataError, match=r"a/config.json: key 'network' is missing"):
        SegmenterConfig.from_dict({k: v for k, v in GOOD.items() if k != "network"}, "a/config.json")
    with pytest.raises(DataError, match=r"a/config.json: dropout 2 must be"):
        SegmenterConfig.from_dict(GOOD | {"dropout": 2}, "a/config.json")
