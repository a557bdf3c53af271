"""NIfTI in RAS+ order whatever the file's is, back on its own grid, and one line for what cannot be used."""

import gzip
import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data import nifti
from popen.data.nifti import grid_difference, read_label_volume, read_volume, write_label_volume
from popen.data.safe_io import DataError
from tests.data.medical_files import AFFINE, SHAPE, block, voxels, write_volume

LPS = np.diag([-1.5, -2, 3, 1])  # first two axes run the other way
SWAPPED = np.array([[0, 0, 3, 1], [1.5, 0, 0, 2], [0, -2, 0, 3], [0, 0, 0, 1.0]])  # axes run to A, I and R


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_spacing_and_affine(tmp_path, ending):
    volume = read_volume(write_volume(tmp_path / f"a{ending}", voxels()))
    assert volume.values_CXYZ.dtype == np.float32 and volume.values_CXYZ.shape == (1, *SHAPE)
    assert (volume.values_CXYZ[0] == voxels()).all()
    assert volume.spacing == (1.5, 2, 3)
    assert (volume.affine == AFFINE).all()


@pytest.mark.parametrize("affine", [AFFINE, LPS, SWAPPED], ids=["RAS", "LPS", "swapped"])
def test_every_voxel_keeps_its_place_in_the_patient(tmp_path, affine):
    """The voxel that the file has at world point p is the one that the RAS+ array has there."""
    values = voxels()
    volume = read_volume(write_volume(tmp_path / "a.nii.gz", values, affine))
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert sorted(volume.spacing) == [1.5, 2, 3]
    for index in np.ndindex(SHAPE):
        world = affine @ [*index, 1]
        i, j, k, _ = np.rint(np.linalg.solve(volume.affine, world)).astype(int)
        assert volume.values_CXYZ[0, i, j, k] == values[index]


def test_integers_are_scaled_by_the_header(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4), header)
    image.header.set_slope_inter(0.5, -100)
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([0.5, -100], "<f4").tobytes()  # scl_slope and scl_inter
    (tmp_path / "a.nii").write_bytes(data)
    assert np.allclose(read_volume(tmp_path / "a.nii").values_CXYZ.ravel(), np.arange(24) * 0.5 - 100)


def test_nifti_2_and_big_endian(tmp_path):
    nib.Nifti2Image(voxels(), AFFINE).to_filename(tmp_path / "two.nii")
    big = nib.Nifti1Header(endianness=">")
    big.set_data_dtype(np.float32)
    nib.Nifti1Image(voxels(), AFFINE, big).to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\0\0\1\x5c"
    for name in ("two", "big"):
        volume = read_volume(tmp_path / f"{name}.nii")
        assert (volume.values_CXYZ[0] == voxels()).all() and (volume.affine == AFFINE).all()


@pytest.mark.parametrize("affine", [AFFINE, LPS, SWAPPED], ids=["RAS", "LPS", "swapped"])
@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_labels_are_written_on_the_grid_of_the_input(tmp_path, affine, name):
    own = block(1, 2)
    source = write_volume(tmp_path / "scan.nii.gz", voxels(), affine)
    labels, _ = read_label_volume(write_volume(tmp_path / "labels.nii.gz", own, affine))
    write_label_volume(tmp_path / name, labels.astype(np.uint8), read_volume(source))
    written, scan = nib.load(tmp_path / name), nib.load(source)
    assert (np.asarray(written.dataobj) == own).all() and written.get_data_dtype() == np.uint8
    for key in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "pixdim", "xyzt_units"):
        assert (written.header[key] == scan.header[key]).all()
    first = (tmp_path / name).read_bytes()
    write_label_volume(tmp_path / name, labels.astype(np.uint8), read_volume(source))
    assert (tmp_path / name).read_bytes() == first  # no time of writing in it


def test_labels_of_another_grid_are_not_written(tmp_path):
    volume = read_volume(write_volume(tmp_path / "a.nii", voxels()))
    with pytest.raises(ValueError, match=r"labels: int32 \(6, 5, 4\); give uint8"):
        write_label_volume(tmp_path / "out.nii", block(1).astype(np.int32), volume)
    with pytest.raises(ValueError, match=r"\(5, 5, 4\); give uint8 \(6, 5, 4\)"):
        write_label_volume(tmp_path / "out.nii", block(1)[1:], volume)


def test_grids_are_compared_by_size_spacing_and_place(tmp_path):
    first = read_volume(write_volume(tmp_path / "a.nii", voxels()))

    def difference(values=None, affine=AFFINE):
        return grid_difference(first, read_volume(write_volume(tmp_path / "b.nii", values or voxels(), affine)))

    nearly, moved, coarse = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    nearly[0, 3] += 0.01
    moved[0, 3] += 0.75
    coarse[0, 0] = 1.6
    assert difference() is None and difference(affine=nearly) is None
    assert difference(affine=moved) == "affine 0.75 mm off the picture's"
    assert difference(affine=coarse) == "spacing 1.6 × 2 × 3 mm, the picture's is 1.5 × 2 × 3 mm"
    short = read_volume(write_volume(tmp_path / "c.nii", voxels(shape=(6, 5, 3))))
    assert grid_difference(first, short) == "size 6 × 5 × 3, the picture's is 6 × 5 × 4"


# ---- what cannot be used: (writes a file, what the one line says of it)


def broken_header(path, change):
    write_volume(path, voxels())
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def put(offset, value, kind):
    def change(data):
        packed = np.array(value, kind).tobytes()
        data[offset : offset + len(packed)] = packed

    return change


def with_nan(path):
    values = voxels()
    values[0, 0, 0], values[1, 1, 1], values[2, 2, 2] = np.nan, np.inf, -np.inf
    write_volume(path, values)


BAD = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty; fetch it again"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG" + bytes(600)), "not NIfTI, starts with b'\\x89PNG'"),
    "broken gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(40)), "cannot be unpacked"),
    "header cut off": (lambda path: path.write_bytes(nib.Nifti1Image(voxels(), AFFINE).to_bytes()[:100]), "not NIfTI"),
    "voxels cut off": (
        lambda path: path.write_bytes(nib.Nifti1Image(voxels(), AFFINE).to_bytes()[:-1]),
        "ends within its voxels (120 expected)",
    ),
    "packed and cut off": (
        lambda path: path.write_bytes(gzip.compress(nib.Nifti1Image(voxels(), AFFINE).to_bytes())[:-20]),
        "cannot be unpacked",
    ),
    "4-D": (
        lambda path: write_volume(path, voxels(shape=(6, 5, 4, 3))),
        "4-D (6 × 5 × 4 × 3) where one 3-D volume is expected; split or export it again",
    ),
    "5-D": (lambda path: write_volume(path, voxels(shape=(2, 2, 2, 1, 3))), "5-D (2 × 2 × 2 × 1 × 3)"),
    "NaN": (with_nan, "3 of 120 voxels are NaN or infinite; fill them or leave it out"),
    "complex": (lambda path: write_volume(path, voxels().astype(np.complex64)), "voxels of type complex64"),
    "a pair's header": (lambda path: broken_header(path, put(344, list(b"ni1\0"), "u1")), ".hdr/.img pair"),
    "unknown type": (lambda path: broken_header(path, put(70, 77, "<i2")), "broken NIfTI header"),
    "negative size": (lambda path: broken_header(path, put(42, -6, "<i2")), "-6 × 5 × 4 voxels; the header is broken"),
    "offset NaN": (lambda path: broken_header(path, put(108, np.nan, "<f4")), "voxels start at byte nan"),
    "half a scale": (lambda path: broken_header(path, put(112, [2.0, np.nan], "<f4")), "slope without an intercept"),
    "voxels in the header": (
        lambda path: broken_header(path, put(108, 16.0, "<f4")),
        "broken NIfTI header (vox offset 16",
    ),
    "voxels far off": (lambda path: broken_header(path, put(108, 2.0**25, "<f4")), "voxels start at byte 33554432"),
    "no inverse": (lambda path: broken_header(path, put(312, [0.0] * 4, "<f4")), "the affine has no inverse"),
    "affine NaN": (lambda path: broken_header(path, put(280, np.nan, "<f4")), "the affine has no inverse"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(tmp_path, name):
    path = tmp_path / "bad.nii"
    write, message = BAD[name]
    write(path)
    with pytest.raises(DataError) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert message in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_stands_in_a_header_is_read_or_refused(changes):
    data = bytearray(nib.Nifti1Image(voxels(), AFFINE).to_bytes())
    for place, value in changes:
        data[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nii"
        path.write_bytes(data)
        try:
            volume = read_volume(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert np.isfinite(volume.values_CXYZ).all() and np.isfinite(volume.affine).all()


def test_a_fourth_axis_of_one_is_no_fourth_axis_and_channels_are_read_where_asked(tmp_path):
    one = write_volume(tmp_path / "one.nii", voxels(shape=(*SHAPE, 1)))
    assert read_volume(one).values_CXYZ.shape == (1, *SHAPE)
    values = voxels(shape=(*SHAPE, 2))
    volume = read_volume(write_volume(tmp_path / "two.nii", values, LPS), channels=2)
    assert (volume.values_CXYZ[1] == values[::-1, ::-1, :, 1]).all()
    with pytest.raises(DataError, match=r"3-D .* where a 4-D file of 2 channels is expected"):
        read_volume(one, channels=2)


def test_a_packed_bomb_is_refused_by_what_its_header_claims(tmp_path):
    """1 GiB of zeros packs into 1 MB: neither a large claim nor bytes behind a small one are unpacked."""
    large = nib.Nifti1Header()
    large.set_data_dtype(np.uint8)
    large.set_data_shape((1024, 1024, 1024))
    (tmp_path / "claim.nii.gz").write_bytes(gzip.compress(large.binaryblock + bytes(100)))
    with pytest.raises(DataError, match=r"1024 × 1024 × 1024, over 134217728 voxels; crop it or raise max_voxels"):
        read_volume(tmp_path / "claim.nii.gz")
    small = nib.Nifti1Image(voxels(), AFFINE).to_bytes()
    (tmp_path / "behind.nii.gz").write_bytes(gzip.compress(small + bytes(2**26), 1))
    tracemalloc.start()
    assert (read_volume(tmp_path / "behind.nii.gz").values_CXYZ[0] == voxels()).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22  # and not the 64 MiB
    with pytest.raises(DataError, match="over 119 voxels"):
        read_volume(tmp_path / "behind.nii.gz", max_voxels=119)


def test_a_damaged_byte_is_found_by_the_checksum(tmp_path):
    data = bytearray(gzip.compress(nib.Nifti1Image(voxels(), AFFINE).to_bytes(), 0))
    data[500] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_volume(tmp_path / "a.nii.gz")


def test_labels_are_whole_numbers(tmp_path):
    labels, volume = read_label_volume(write_volume(tmp_path / "a.nii", block(1, 2).astype(np.float32), LPS))
    assert labels.dtype == np.int32 and (labels == block(1, 2)[::-1, ::-1]).all()
    assert volume.spacing == (1.5, 2, 3)
    with pytest.raises(DataError, match="6 voxels are no whole label ids; it was resampled"):
        read_label_volume(write_volume(tmp_path / "b.nii", block(1).astype(np.float32) * 0.5))


def test_names_of_nifti():
    assert nifti.is_nifti("a/scan.NII.GZ") and nifti.is_nifti("scan.nii") and not nifti.is_nifti("scan.png")
