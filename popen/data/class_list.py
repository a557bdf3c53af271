"""Class lists of label PNGs as the data sets bring them: which number, or which colour, means which name.

Read are JSON (a list of names; {name: number}; {name: [r, g, b]}; Mapillary's {"labels": [{"readable": ...}]}) and
text: a name a line, `12: name` (COCO-Stuff), `r g b name` (CamVid), `name,r,g,b` (CSV), ADE20K's objectInfo150.txt.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popen.data.safe_io import DataError, read_json, read_text

_LINES = {
    "numbers": re.compile(r"(?P<number>\d+)\s*:\s*(?P<name>.+)"),
    "colours": re.compile(r"(?P<r>\d+)\s+(?P<g>\d+)\s+(?P<b>\d+)\s+(?P<name>\D.*)"),
    "the table of ADE20K": re.compile(r"(?P<number>\d+)\t(?:[^\t]*\t)+(?P<name>[^\t]+)"),
    "colours after commas": re.compile(r"(?P<name>[^,]+?)\s*,\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\b.*"),
    "names": re.compile(r"(?P<name>[^\t]*[^\W\d][^\t]*)"),
}
_HEADERS = re.compile(r"idx\tratio\t.*|name\s*,\s*r\s*,\s*g\s*,\s*b\b.*", re.IGNORECASE)


@dataclass(frozen=True)
class ClassList:
    """Names by label: by the number in an index PNG, or by `colour_label` in a colour PNG; names as in the file."""

    names: Mapping[int, str]
    is_coloured: bool = False

    def labels_HW(self, png: np.ndarray, where: str) -> np.ndarray:
        """Turn the pixels of a label PNG into labels, int32 (H, W).

        Args:
            png: uint8 (H, W) of an index PNG, uint8 (H, W, 3) of a colour PNG.
            where: the file, for the error.
        Raises:
            DataError: the list is of the other sort.
        """
        if png.ndim != (3 if self.is_coloured else 2):
            has, png_is = ("colours", "an index") if self.is_coloured else ("numbers", "a colour")
            raise DataError(f"{where}: the class list has {has} and this is {png_is} PNG; give the list of this set")
        if not self.is_coloured:
            return png.astype(np.int32)
        return colour_label(*(png[:, :, channel].astype(np.int32) for channel in range(3)))


def colour_label(red, green, blue):
    """The label of a colour: 65536 R + 256 G + B."""
    return 65536 * red + 256 * green + blue


def words(name: str) -> str:
    """Turn the name of a class into words: "SignSymbol" is "sign symbol", "car_(automobile)" is "car"."""
    name = name.split("_(")[0].split(";")[0].split(",")[0]  # of ADE20K's synonyms the first
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower().strip()


def read_class_list(path: str | Path) -> ClassList:
    """Read a class list of one of the forms above; DataError names the file and the line or class."""
    if Path(path).suffix.lower() == ".json":
        return _from_json(read_json(path, 2**24), path)
    lines = [(n, line.strip()) for n, line in enumerate(read_text(path, 2**24).splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line and not _HEADERS.fullmatch(line)]
    if not lines:
        raise DataError(f"{path}: no class in it; give the class list of the data set")
    form = next((form for form, pattern in _LINES.items() if pattern.fullmatch(lines[0][1])), "names")
    found, coloured = [], form.startswith("colours")
    for index, (number, line) in enumerate(lines):
        match = _LINES[form].fullmatch(line)
        if match is None:
            raise DataError(f"{path}:{number}: not as the lines before it, which give {form}; correct the line")
        parts = match.groupdict()
        if coloured:
            label = _colour([int(parts[channel]) for channel in "rgb"], f"{path}:{number}")
        else:
            label = int(parts.get("number", index))
        found.append((label, parts["name"].strip()))
    return _checked(found, coloured, path)


def _from_json(data, path: str | Path) -> ClassList:
    if isinstance(data, Mapping) and isinstance(data.get("labels"), list):
        data = [entry.get("readable") if isinstance(entry, Mapping) else entry for entry in data["labels"]]
    if isinstance(data, list):
        return _checked(enumerate(data), False, path)
    if not isinstance(data, Mapping):
        raise DataError(f"{path}: expected a list of names or {{name: number}}; see popen.data.class_list")
    coloured = any(isinstance(value, list) for value in data.values())
    found = []
    for name, value in data.items():
        if coloured:
            found.append((_colour(value, f"{path}: {name!r}"), name))
        elif type(value) is int:
            found.append((value, name))
        else:
            raise DataError(f"{path}: {name!r}: expected a number or [r, g, b]; correct it")
    return _checked(found, coloured, path)


def _colour(value, where: str) -> int:
    if not isinstance(value, list) or len(value) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in value):
        raise DataError(f"{where}: expected a colour, three whole numbers in 0..255; correct it")
    return colour_label(*value)


def _checked(found: Iterable[tuple[int, str]], coloured: bool, path: str | Path) -> ClassList:
    names: dict[int, str] = {}
    for label, name in found:
        if not isinstance(name, str) or not words(name):
            raise DataError(f"{path}: class {label}: no name; give it one")
        if label in names:
            raise DataError(f"{path}: {names[label]!r} and {name!r} have the same number or colour; correct one")
        if not coloured and not 0 <= label <= 255:
            raise DataError(f"{path}: {name!r}: {label} is no value of an 8-bit PNG; correct it")
        names[label] = name
    if not names:
        raise DataError(f"{path}: no class in it; give the class list of the data set")
    return ClassList(names, coloured)
