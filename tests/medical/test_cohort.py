"""Windows that cover a picture, prepared cases, and the calibrated threshold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.medical_case import Case
from popen.data.safe_io import DataError
from popen.medical.calibration import calibrate_threshold, calibrated
from popen.medical.cohort import Prepared, prepare, windows
from popen.medical.segmenter import Segmenter, SegmenterConfig
from popen.medical.transforms import Preprocessing
from popen.objectives.uncertainty import fuzzy_labels

MEAN, STD = np.arange(30).mean(), np.arange(30).std()  # of the picture below, which is normalised


class Reference:
    """A case already in memory, as a reference."""

    def __init__(self, case):
        self.case, self.case_id, self.patient = case, case.case_id, case.patient

    def load(self):
        return self.case


def case(shape=(6, 5), masks=True):
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return Case("scan", "p", image, (image > 10) if masks else None, (1.0,) * len(shape))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=2, max_size=3))
def test_windows_cover_every_voxel_and_stay_inside(sides):
    patch, size = tuple(p for p, _ in sides), tuple(p + more for p, more in sides)
    seen = np.zeros((1, *size), dtype=int)
    for _, window in windows(size, patch, "scan"):
        assert seen[window].shape == (1, *patch)
        seen[window] += 1
    assert seen.min() >= 1


def test_a_picture_of_one_patch_keeps_its_name_and_others_say_where():
    assert [place for place, _ in windows((4, 4), (4, 4), "scan")] == [""]
    assert [place for place, _ in windows((4, 6), (4, 4), "scan")] == ["@0-0", "@0-2"]
    with pytest.raises(DataError, match=r"scan: \(3, 6\) is smaller than the patch \(4, 4\); pad it"):
        list(windows((3, 6), (4, 4), "scan"))


def test_cases_are_cut_and_unlabelled_ones_keep_no_mask():
    preprocessing = Preprocessing((4, 4))
    found = prepare([Reference(case())], preprocessing, (4, 4), labelled=True)
    assert [own.name for own in found] == ["scan@0-0", "scan@0-1", "scan@2-0", "scan@2-1"]
    assert all(own.masks.shape == (1, 4, 4) for own in found)
    assert prepare([Reference(case())], preprocessing, (4, 4), labelled=False)[0].masks is None
    with pytest.raises(DataError, match="scan: no masks; leave it out"):
        prepare([Reference(case(masks=False))], preprocessing, (4, 4), labelled=True)


def test_what_further_annotators_drew_is_cut_alike():
    own = replace(case(), further_masks=(case().image_CHW > 20,))
    found = prepare([Reference(own)], Preprocessing((4, 4)), (4, 4), labelled=True)
    assert all(torch.equal(window.further[0], window.picture > (20 - MEAN) / STD) for window in found)
    assert prepare([Reference(own)], Preprocessing((4, 4)), (4, 4), labelled=False)[0].further == ()


def test_examples_have_the_maps_that_are_asked_for():
    own = prepare([Reference(case())], Preprocessing((4, 4)), (4, 4), labelled=True)[0]
    assert own.example().distance is None
    both = own.example(distance=True, geodesic=True)
    assert torch.equal(both.distance > 0, own.masks) and both.geodesic.shape == own.masks.shape


def test_distances_are_in_pixels_of_the_network():
    """A picture of 40 × 40 of its own pixels as 8 × 8: the band of 3 holds rows that are 1, 2 and 3 of the 8 away."""
    large = np.zeros((1, 40, 40), bool)
    large[:, 20:] = True
    own = Case("large", "large", large.astype(np.float32), large, (1.0, 1.0))
    found = prepare([Reference(own)], Preprocessing((8, 8), fit="resize"), (8, 8), labelled=True)[0]
    assert found.spacing == (5.0, 5.0)
    depth = found.example(distance=True).distance[0, :, 0]
    assert depth.tolist() == [-4, -3, -2, -1, 1, 2, 3, 4]
    soft = fuzzy_labels(depth, 3.0)
    assert ((soft > 0) & (soft < 1)).tolist() == [False, False, True, True, True, True, False, False]


class Shifted(torch.nn.Module):
    """The brightness, shifted: right at a threshold of 1."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        return pictures + self.shift


def test_the_threshold_undoes_a_bias():
    segmenter = Segmenter(SegmenterConfig("shifted", 2, 1, ("bright",), "sigmoid", (1, 4)), Shifted())
    picture = torch.tensor([[[0.6, 0.1, -0.1, -0.6]]])
    cases = [Prepared("a", picture, picture > 0, (1.0, 1.0), "p")]
    assert calibrate_threshold(segmenter, cases) == (1.0, 1.0)
    assert segmenter.settings.threshold == 0  # the caller writes it down
    with pytest.raises(ValueError, match="no cases to calibrate on"):
        calibrate_threshold(segmenter, [])


class LeftSmall(torch.nn.Module):
    """The brightness, less 2 in the left half: a flip sees the other half so."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        return self.gain * pictures - 2 * (torch.arange(pictures.shape[-1]) < pictures.shape[-1] // 2)


def test_flips_are_calibrated_apart():
    """Bright 1 and dark -1 are -1 and -3 on the left: without flips -1 divides best; the mean of 1 and -1 is 0, of
    -1 and -3 about -1.7, which many thresholds divide, and the one nearest to 0 is the last below 0.
    """
    segmenter = Segmenter(SegmenterConfig("left", 2, 1, ("bright",), "sigmoid", (1, 4)), LeftSmall())
    picture = torch.tensor([[[1.0, -1, 1, -1]]])
    settings_, told = calibrated(segmenter, [Prepared("a", picture, picture > 0, (1.0, 1.0), "p")])
    assert settings_.flips_threshold == -0.25 and settings_.threshold == -1.25
    assert told == "threshold -1.25, with flips -0.25; dev Dice 0.8000, with flips 1.0000"
    assert segmenter.settings.flips_threshold is None
