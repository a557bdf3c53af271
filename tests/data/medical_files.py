"""Tiny medical files for the tests: volumes of 6 × 5 × 4 voxels, pictures of 12 × 10 pixels."""

import json

import nibabel as nib
import numpy as np
from PIL import Image

SHAPE = (6, 5, 4)
AFFINE = np.array([[1.5, 0, 0, -10], [0, 2, 0, 5], [0, 0, 3, 7], [0, 0, 0, 1.0]])


def voxels(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def block(*ids, shape=SHAPE):
    """A label map with a slab of each id along the first axis, one voxel thick."""
    labels = np.zeros(shape, np.uint8)
    for index, label in enumerate(ids):
        labels[index + 1, 1:4, 1:3] = label
    return labels


def write_volume(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, affine).to_filename(path)
    return path


def write_picture(path, seed=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def write_mask(path, size=(12, 10), level=255, empty=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.zeros((size[1], size[0]), np.uint8)
    if not empty:
        levels[2:7, 3:9] = level
    Image.fromarray(levels).save(path)
    return path


def write_raw(root, labels, cases, channels=("MR",), **changed):
    """A raw folder of nnU-Net v2; `cases` maps a name to its label map."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (name, label) in enumerate(cases.items()):
        for channel in range(len(channels)):
            write_volume(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", voxels(10 * seed + channel))
        write_volume(root / "labelsTr" / f"{name}.nii.gz", label)
    content = {
        "channel_names": {str(k): name for k, name in enumerate(channels)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content | changed))
    return root
