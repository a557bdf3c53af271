"""Masks of regions out of label ids, regions that share ids, and one label map back."""

import numpy as np
import pytest

from popen.data.label_regions import LabelRegions, declared_regions, label_map, read_regions
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
    apart = [(1,), (2,), (3,)]  # no id means two of them, as without a dataset.json
    assert label_map(masks, apart).tolist() == labels.tolist()
    assert label_map(masks[::-1], apart).tolist() == [0, 3, 3, 2, 1]


@pytest.mark.parametrize("whole, core, enhancing", [([1, 2, 3], [2, 3], [3]), ([1, 2, 4], [1, 4], [4])])
def test_regions_in_one_another_give_their_ids_back(whole, core, enhancing):
    """nnU-Net's numbers, and BraTS's own until 2021, where the oedema is 2 and the necrosis 1."""
    regions = read_regions({"background": 0, "whole": whole, "core": core, "enhancing": enhancing}, "x")
    labels = np.random.default_rng(0).choice([0, *whole], (4, 5, 6))
    assert (label_map(regions.masks(labels), regions.ids) == labels).all()
    stray = np.array([False, False, True])[:, None]  # a core that is in no tumour, which no id means
    assert label_map(stray, regions.ids).tolist() == enhancing


def test_of_two_regions_that_overlap_the_id_says_which_ones():
    labels = np.array([0, 5, 6, 7, 5])
    regions = read_regions({"background": 0, "left": [5, 6], "right": [6, 7]}, "x")
    assert label_map(regions.masks(labels), regions.ids).tolist() == labels.tolist()


def test_of_ids_that_mean_the_same_the_first_is_written():
    regions = read_regions({"background": 0, "tumour": [9, 4], "organ": [2]}, "x", "softmax")
    assert label_map(regions.masks(np.array([0, 9, 4, 2])), regions.ids).tolist() == [0, 4, 4, 2]


def test_regions_without_a_dataset_json():
    assert declared_regions(["a", "b"], "sigmoid") == LabelRegions(("a", "b"), ((1,), (2,)), "sigmoid")
    wanted = LabelRegions(("background", "a", "b"), ((0,), (1,), (4,)), "softmax")
    assert declared_regions(["a", "b"], "softmax", [1, 4]) == wanted
    assert declared_regions(["background", "a", "b"], "softmax", [1, 4]) == wanted


@pytest.mark.parametrize(
    "names, activation, ids, message",
    [
        (["a", "a"], "sigmoid", None, r"regions \['a', 'a'\]: give each name once, without 'background'"),
        (["background", "a"], "sigmoid", None, "without 'background'"),
        (["a", "b"], "sigmoid", [1], r"label_ids \[1\]: 2 regions have names; give an id for each of a, b"),
        (["a"], "sigmoid", [300], r"label_ids: label 'a': \[300\]; give ids from 0 to 255"),
        (["a"], "sigmoid", [0], "label_ids: id 0 must be the background's alone"),
        (["a", "b"], "softmax", [2, 2], "label_ids: regions share ids"),
        (["background"], "softmax", None, "label_ids: no label beside the background"),
    ],
)
def test_declarations_that_cannot_be_used(names, activation, ids, message):
    with pytest.raises(DataError, match=message):
        declared_regions(names, activation, ids)


def test_one_hot_masks_give_their_labels_back():
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    regions = read_regions({"background": 0, "a": 1, "b": 2}, "x")
    written = label_map(regions.masks(labels), regions.ids)
    assert (written == labels).all() and written.dtype == np.uint8


def test_masks_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"masks: int64 \(2, 3\); give bool"):
        label_map(np.zeros((2, 3), np.int64), [(1,), (2,)])
    for ids in ([(1,)], [(1,), ()], [(1,), (256,)]):
        with pytest.raises(
            ValueError, match=r"\(2, 3\); give bool \(K, \*spatial\) and ids from 0 to 255 for each of K"
        ):
            label_map(np.zeros((2, 3), bool), ids)
