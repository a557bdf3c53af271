"""Masks of regions out of label ids, regions that share ids, and one label map back."""

import numpy as np
import pytest

from popen.data.label_regions import LabelRegions, label_map, read_regions
from popen.data.safe_io import DataError

BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": [3]}


def test_classes_that_exclude_each_other_become_one_hot_masks():
    regions = read_regions({"background": 0, "anterior": 1, "posterior": 2}, "x")
    assert regions == LabelRegions(("background", "anterior", "posterior"), ((0,), (1,), (2,)), "softmax")
    masks = regions.masks(np.array([[0, 1], [2, 1]]))
    assert masks.dtype == np.bool_ and (masks.sum(0) == 1).all()
    assert (masks[1] == [[False, True], [False, True]]).all()


def test_the_decathlon_writes_them_the_other_way_round():
    assert read_regions({"0": "background", "1": "a", "2": "b"}, "x") == read_regions(
        {"background": 0, "a": 1, "b": 2}, "x"
    )


def test_regions_that_share_ids_are_independent():
    regions = read_regions(BRATS, "x")
    assert regions.names == ("whole tumour", "tumour core", "enhancing") and regions.activation == "sigmoid"
    assert regions.declared == {0, 1, 2, 3}
    masks = regions.masks(np.array([0, 1, 2, 3]))
    assert masks.tolist() == [[False, True, True, True], [False, False, True, True], [False, False, False, True]]
    assert regions.unknown((0, 3, 4, -1)) == [-1, 4]


def test_one_region_is_sigmoid_unless_softmax_is_asked_for():
    labels = {"background": 0, "polyp": 7}
    assert read_regions(labels, "x") == LabelRegions(("polyp",), ((7,),), "sigmoid")
    assert read_regions(labels, "x", "softmax") == LabelRegions(("background", "polyp"), ((0,), (7,)), "softmax")


@pytest.mark.parametrize(
    "labels, activation, message",
    [
        (None, None, "'labels' must be an object"),
        ({}, None, "'labels' must be an object"),
        ({"background": 0}, None, "no label beside the background"),
        ({"a": 1}, None, "id 0 must be the background's alone"),
        ({"background": 0, "a": [0, 1]}, None, "id 0 must be the background's alone"),
        ({"background": 0, "a": "1"}, None, r"label 'a': \['1'\]; give ids from 0 to 255, each once"),
        ({"background": 0, "a": 256}, None, r"label 'a': \[256\]"),
        ({"background": 0, "a": True}, None, r"label 'a': \[True\]"),
        ({"background": 0, "a": [1, 1]}, None, r"label 'a': \[1, 1\]"),
        ({"background": 0, "a": []}, None, r"label 'a': \[\]"),
        ({"background": 0, "a": 1, "ignore": 2}, None, "cases labelled in part are not supported"),
        (BRATS, "softmax", "regions share ids, and a softmax gives each pixel to one; use sigmoid"),
        ({"background": 0, "a": 1}, "relu", "activation 'relu': give sigmoid or softmax"),
    ],
)
def test_labels_that_cannot_be_used(labels, activation, message):
    with pytest.raises(DataError, match=message):
        read_regions(labels, "x", activation)


def test_the_smaller_region_lies_on_top_whatever_the_order():
    regions = read_regions(BRATS, "x")
    labels = np.array([0, 1, 1, 2, 3])
    masks = regions.masks(labels)
    assert label_map(masks, "sigmoid").tolist() == labels.tolist()
    assert label_map(masks[::-1], "sigmoid").tolist() == [0, 3, 3, 2, 1]


def test_one_hot_masks_give_their_labels_back():
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    masks = read_regions({"background": 0, "a": 1, "b": 2}, "x").masks(labels)
    assert (label_map(masks, "softmax") == labels).all() and label_map(masks, "softmax").dtype == np.uint8


def test_masks_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"masks: int64 \(2, 3\); give bool"):
        label_map(np.zeros((2, 3), np.int64), "sigmoid")
    with pytest.raises(ValueError, match=r"\(255, 1\); give bool \(K, \*spatial\) with K under 255"):
        label_map(np.zeros((255, 1), bool), "sigmoid")
