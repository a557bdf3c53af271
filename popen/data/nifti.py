"""Volumes in NIfTI: read within limits, laid out in RAS+ order, and label maps written on the grid of an input.

Only the 348 or 540 bytes of the header and the voxels are read; extensions, in which other software keeps what it
likes, are passed over. Of a packed file no byte is unpacked beyond what the header asks for.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    import nibabel as nib
    from nibabel import orientations
    from nibabel.imageglobals import LoggingOutputSuppressor
    from nibabel.spatialimages import HeaderDataError
except ImportError as error:
    raise ImportError("NIfTI needs nibabel, which is missing: pip install popen-seg[medical]") from error

from popen.data.safe_io import DataError, inflate, read_bytes, write_bytes

ENDINGS = (".nii.gz", ".nii")
MAX_VOXELS = 2**27  # 512 MiB as float32; a chest CT of 512 × 512 × 400 has 1e8
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
OFF_GRID = 0.1  # of a voxel: how far the corners of two grids may lie apart


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in RAS+ order, and how the file had them.

    values_CXYZ: float32 (C, X, Y, Z), finite, with the scale of the header applied.
    affine: float64 (4, 4) from these voxels to mm.
    header: the file's own, for writing on its grid.
    """

    values_CXYZ: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Edges of a voxel in mm along the three axes."""
        return tuple(float(step) for step in nib.affines.voxel_sizes(self.affine))


def is_nifti(path: str | Path) -> bool:
    """Whether the name says NIfTI."""
    return str(path).lower().endswith(ENDINGS)


def read_volume(path: str | Path, channels: int = 1, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a .nii or .nii.gz file.

    Args:
        channels: how many volumes the file must hold, along a fourth axis.
        max_voxels: refused above it from the header alone, before anything is unpacked.
    Raises:
        DataError: missing, no NIfTI of one file, damaged, 4-D where a volume is expected, too large, complex or colour
            voxels, an affine that is none, or voxels that are NaN or infinite.
    """
    packed = read_bytes(path, 2**30)
    zipped = packed[:2] == b"\x1f\x8b"

    def beginning(most: int) -> bytes:
        return inflate(packed, str(path), most) if zipped else packed[:most]

    header = _header(beginning(540), str(path))
    dtype, shape, offset = _layout(header, str(path), channels, max_voxels)
    count = int(np.prod(shape))
    data = beginning(offset + count * dtype.itemsize + 1)  # the one byte more makes gzip compare its checksum
    if len(data) < offset + count * dtype.itemsize:
        raise DataError(f"{path}: ends within its voxels ({count} expected); fetch or export it again")
    raw = np.frombuffer(data, dtype, count, offset).reshape(shape, order="F")
    values = _scaled(raw, header, str(path))
    affine = _affine(header, str(path))
    turn = orientations.io_orientation(affine)
    affine = affine @ orientations.inv_ornt_aff(turn, shape[:3])
    values = np.moveaxis(orientations.apply_orientation(values, turn), 3, 0)
    return Volume(np.ascontiguousarray(values), affine, header)


def read_label_volume(path: str | Path) -> tuple[np.ndarray, Volume]:
    """Read a volume of label ids.

    Returns:
        int32 (X, Y, Z) in RAS+ order, and the volume they come from.
    Raises:
        DataError: what `read_volume` refuses, or a value that is not a whole number.
    """
    volume = read_volume(path)
    labels = np.rint(volume.values_CXYZ[0])
    broken = int((labels != volume.values_CXYZ[0]).sum())
    if broken or np.abs(labels).max() > 2**24:
        raise DataError(f"{path}: {broken} voxels are no whole label ids; it was resampled, export the labels again")
    return labels.astype(np.int32), volume


def grid_difference(first: Volume, other: Volume) -> str | None:
    """What differs between the grids of two volumes, in words; None where corners lie within a tenth of a voxel."""
    size, expected = other.values_CXYZ.shape[1:], first.values_CXYZ.shape[1:]
    if size != expected:
        return f"size {_times(size)}, the picture's is {_times(expected)}"
    if not np.allclose(other.spacing, first.spacing, rtol=0.01):
        return f"spacing {_times(other.spacing)} mm, the picture's is {_times(first.spacing)} mm"
    corners = np.array([[x, y, z, 1] for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])]).T
    apart = np.linalg.norm(((other.affine - first.affine) @ corners)[:3], axis=0).max()
    if apart > OFF_GRID * min(first.spacing):
        return f"affine {apart:.3g} mm off the picture's"
    return None


def write_label_volume(path: str | Path, labels: np.ndarray, like: Volume) -> None:
    """Write a label map on the grid of an input: its orientation in the file, affine, units and codes.

    Args:
        path: packed where it ends in .gz.
        labels: uint8 (X, Y, Z) in the RAS+ order of `like`.
    Raises:
        ValueError: labels of another type or size.
        StorageError: the disk refused.
    """
    if labels.dtype != np.uint8 or labels.shape != like.values_CXYZ.shape[1:]:
        raise ValueError(f"labels: {labels.dtype} {labels.shape}; give uint8 {like.values_CXYZ.shape[1:]}")
    ras = orientations.axcodes2ornt("RAS")
    turn = orientations.ornt_transform(ras, orientations.io_orientation(like.header.get_best_affine()))
    header = like.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # the window of the picture is none of the labels
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    data = kind(orientations.apply_orientation(labels, turn), None, header).to_bytes()
    write_bytes(path, gzip.compress(data, mtime=0) if str(path).lower().endswith(".gz") else data)


def _header(data: bytes, name: str) -> nib.Nifti1Header:
    size = next((n for n in HEADERS for order in ("little", "big") if int.from_bytes(data[:4], order) == n), None)
    if size is None or len(data) < size:
        raise DataError(f"{name}: not NIfTI, starts with {data[:4]!r}; convert it to .nii.gz")
    try:
        with LoggingOutputSuppressor():
            header = HEADERS[size](data[:size], check=True)
    except Exception as error:  # nibabel raises whatever the bytes lead it to
        raise DataError(f"{name}: broken NIfTI header ({' '.join(str(error).split())[:150]}); export again") from None
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{name}: a header of Analyze or of a .hdr/.img pair; save it as one .nii.gz file")
    return header


def _layout(header, name: str, channels: int, max_voxels: int) -> tuple[np.dtype, tuple[int, ...], int]:
    """Type, shape (X, Y, Z, C) and first byte of the voxels."""
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    given = shape
    shape = (*shape, *(1,) * (4 - len(shape)))
    if min(shape) < 1:
        raise DataError(f"{name}: {_times(given)} voxels; the header is broken, export it again")
    if len(shape) > 4 or shape[3] != channels:
        wanted = "one 3-D volume" if channels == 1 else f"a 4-D file of {channels} channels"
        raise DataError(
            f"{name}: {len(given)}-D ({_times(given)}) where {wanted} is expected; split or export it again"
        )
    if np.prod(shape, dtype=np.float64) > max_voxels:
        raise DataError(f"{name}: {_times(given)}, over {max_voxels} voxels; crop it or raise max_voxels")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"{name}: voxels of type {dtype}; export it with one number a voxel")
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) <= offset <= 2**24:
        raise DataError(f"{name}: voxels start at byte {offset:.0f}; the header is broken, export it again")
    return dtype, shape, int(offset)


def _scaled(raw: np.ndarray, header, name: str) -> np.ndarray:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        raise DataError(f"{name}: a slope without an intercept in the header; export it again") from None
    with np.errstate(over="ignore", invalid="ignore"):
        values = raw.astype(np.float32)
        if slope is not None and (slope, intercept) != (1, 0):
            values = values * np.float32(slope) + np.float32(intercept)
    broken = int(values.size - np.isfinite(values).sum())
    if broken:
        raise DataError(f"{name}: {broken} of {values.size} voxels are NaN or infinite; fill them or leave it out")
    return values


def _affine(header, name: str) -> np.ndarray:
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except Exception as error:
        raise DataError(f"{name}: no affine in the header ({str(error)[:100]}); export it again") from None
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise DataError(f"{name}: the affine has no inverse or is not finite; correct spacing and orientation")
    return affine


def _times(numbers) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
