"""The one door for bytes we did not write: pictures, label maps, JSON, packed files and the names of files.

Whatever is wrong with a file is a DataError of one line that names it and says what to do.
"""

import gzip
import io
import json
import os
import re
import secrets
import unicodedata
import urllib.parse
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}
MAX_PIXELS = 50_000_000
MAX_IMAGE_BYTES = 2**29


class DataError(ValueError):
    """Input that cannot be used; one line naming the file, row or key and the way out."""


class StorageError(OSError):
    """A file could not be written; one line naming it and what became of the old one."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as RGB, upright, with transparency laid over white.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF or GIF file.
        max_pixels: refused above it from the header alone, before anything is decoded.
    Raises:
        DataError: missing, empty, not a picture, truncated, or what `check_image` refuses.
    """
    return decode_image(read_bytes(path, MAX_IMAGE_BYTES), str(path), max_pixels)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the bytes of a picture as `read_image` does; `name` stands in the errors."""
    return check_image(_open(data, name, FORMATS, max_pixels), name, max_pixels)


def check_image(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Refuse a picture we would misread, and return the others as plain RGB, upright, over white.

    Raises:
        DataError: animated, CMYK, 16-bit or float, a side under 2 pixels, over `max_pixels`, or truncated.
    """
    if not isinstance(image, Image.Image):
        raise DataError(f"{name}: not a PIL image but {type(image).__name__}; use PIL.Image.open or Image.fromarray")
    _check_header(image, name, max_pixels)
    if image.mode in ("CMYK", "YCCK"):
        raise DataError(f"{name}: CMYK, whose colours need a print profile; save it as RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise DataError(f"{name}: more than 8 bits a channel (mode {image.mode}); window and save it as 8-bit")
    if image.mode not in MODES:
        raise DataError(f"{name}: colour mode {image.mode} is not supported; save it as RGB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters about a picture is an error above or below
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                rgb = Image.new("RGB", rgba.size, "white")
                rgb.paste(rgba, mask=rgba.getchannel("A"))
            else:
                rgb = upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise DataError(f"{name}: cannot be decoded ({_line(error)}); fetch or export it again") from error
    rgb.info = {}  # no profile, comment or position of the camera travels on
    return rgb


def read_label_png(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a PNG of labels with its numbers untouched.

    Returns:
        uint8 (H, W) for 8-bit grey and palettes (the indices), uint8 (H, W, 3) for 8-bit RGB.
    Raises:
        DataError: missing, broken, over `max_pixels`, or a PNG whose numbers Pillow would rescale or drop.
    """
    data = read_bytes(path, MAX_IMAGE_BYTES)
    image = _open(data, str(path), ("PNG",), max_pixels)
    _check_header(image, str(path), max_pixels)
    depth, colour = data[24], data[25]  # IHDR: Pillow's modes hide 16-bit RGB and stretched 4-bit grey
    if not (depth == 8 and colour in (0, 2)) and not (depth <= 8 and colour == 3):
        raise DataError(
            f"{path}: labels must be 8-bit grey, palette or RGB, not {depth}-bit {image.mode}; export again"
        )
    try:
        return np.array(image)
    except Exception as error:
        raise DataError(f"{path}: cannot be decoded ({_line(error)}); fetch or export it again") from error


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        DataError: missing, unreadable, empty, or over `max_bytes`.
    """
    try:
        with open(path, "rb") as file:
            expected = min(os.fstat(file.fileno()).st_size, max_bytes)  # `read` sets aside what it is asked for
            data = file.read(expected + 1)
            if len(data) > expected:  # it grew, or is none that knows its size
                data += file.read(max_bytes + 1 - len(data))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path or run the download again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_line(error)})") from None
    if not data:
        raise DataError(f"{path}: empty; fetch it again")
    if len(data) > max_bytes:
        raise DataError(f"{path}: over {max_bytes} bytes; split the file or raise the limit")
    return data


def inflate(data: bytes, name: str, most: int) -> bytes:
    """Unpack gzip as far as `most` bytes and no further, whatever the stream would grow to.

    Args:
        data: one gzip member or several; `name` stands in the errors.
    Raises:
        DataError: not gzip, damaged, or cut off before `most` bytes and before its end.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be unpacked ({_line(error)}); fetch or export it again") from None


def read_text(path: str | Path, max_bytes: int = 2**26, fallback: str | None = None) -> str:
    """Read UTF-8 text; a BOM is passed over.

    Args:
        fallback: the encoding of a file that is not UTF-8, where the format allows one.
    Raises:
        DataError: missing, empty, over `max_bytes`, or of another encoding; names the line.
    """
    data = read_bytes(path, max_bytes)
    try:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            if fallback is None:
                raise
            return data.decode(fallback)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8{f' or {fallback}' if fallback else ''}; save the file as UTF-8"
        ) from None


def read_json(path: str | Path, max_bytes: int = 2**31, fallback: str | None = None) -> Any:
    """Read strict JSON: UTF-8 (a BOM is passed over), finite numbers, each key once.

    Args:
        fallback: the encoding of a file that is not UTF-8, where the format allows one.
    Raises:
        DataError: missing, over `max_bytes`, or not that; names the line when it is known.
    """
    text = read_text(path, max_bytes, fallback)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a pair parses, and breaks whoever writes it again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); fetch or export it again") from None
    except UnicodeEncodeError:
        raise DataError(f"{path}: a \\ud800-like escape without its partner; write the character itself") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be a data file; check where it comes from") from None
    except ValueError as error:
        raise DataError(f"{path}: {_line(error)}; correct the file") from None
    return value


def inside(root: str | Path, name: str) -> Path:
    """Join a file name found in data to the folder it must stay in.

    Returns:
        The resolved path; the file need not exist.
    Raises:
        DataError: empty, overlong, absolute, with '..', backslash or NUL (also disguised: %2e), or a link out of root.
    """
    shown = ascii(name)[:80]
    if not isinstance(name, str) or not name:
        raise DataError(f"file name {shown}: expected text; correct the data that names it")
    for form in (name, unicodedata.normalize("NFKC", name), urllib.parse.unquote(name)):
        if form.startswith("/") or re.match(r"[A-Za-z]:", form) or {"\\", "\0"} & set(form) or ".." in form.split("/"):
            raise DataError(f"file name {shown}: must be relative, without '..', backslash or NUL; correct the data")
    try:
        if len(os.fsencode(name)) > 4000 or any(len(os.fsencode(part)) > 255 for part in name.split("/")):
            raise ValueError("too long")
        name.encode("utf-8")  # a lone surrogate names no file that could come from a data set
        base = Path(root).resolve()
        path = (base / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"file name {shown}: cannot be followed ({_line(error)}); correct the data") from None
    if not path.is_relative_to(base):
        raise DataError(f"file name {shown}: a link leads out of {root}; copy the file into that folder")
    return path


def write_json(path: str | Path, obj: Any) -> None:
    """Write strict JSON so that at every instant the file is the whole old one or the whole new one.

    Raises:
        DataError: `obj` has NaN, infinity or something JSON does not know.
        StorageError: the disk refused; the old file is as it was.
    """
    write_bytes(path, _json_bytes(path, obj))


def settle_json(path: str | Path, obj: Any) -> Any:
    """Write strict JSON unless the file is there, and return what it holds: of several processes the first decides.

    Raises:
        DataError, StorageError: as `write_json`; what is there is no JSON.
    """
    path = Path(path)
    if not path.exists():
        _write(path, _json_bytes(path, obj), only_new=True)
    return read_json(path)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that at every instant it is the whole old one or the whole new one.

    Raises:
        StorageError: the disk refused; the old file is as it was.
    """
    _write(Path(path), data, only_new=False)


def _json_bytes(path: str | Path, obj: Any) -> bytes:
    try:
        return (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not written, {_line(error)}; pass finite numbers, text, lists and dicts") from None


def _write(path: Path, data: bytes, only_new: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")  # threads share a pid
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if only_new:
            with suppress(FileExistsError):
                os.link(temporary, path)  # unlike a rename it leaves a file alone that is there
            temporary.unlink()
        else:
            os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, path, f"{len(data)} bytes needed, the old file is intact") from error
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise storage_error(error, path, "it is complete but may not survive a power cut") from error


def storage_error(error: OSError, path: str | Path, state: str) -> StorageError:
    """Turn the system's error into one line with the path and the state of what was there before."""
    made = StorageError(f"{path}: cannot be written ({_line(error)}); {state}; free space or choose another folder")
    made.errno = error.errno
    return made


def _open(data: bytes, name: str, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """Parse the header only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(name, "far", max_pixels) from None
    except Exception as error:
        known = ", ".join(formats)
        raise DataError(
            f"{name}: not a picture ({known}), starts with {data[:12]!r}; fetch or export it again"
        ) from error


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width}x{height},", max_pixels)
    if min(width, height) < 2:
        raise DataError(f"{name}: {width}x{height}, both sides must have at least 2 pixels; remove the picture")
    try:
        animated = getattr(image, "is_animated", False)
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded ({_line(error)}); fetch or export it again") from error
    if animated and image.format != "MPO":  # MPO is a telephone's JPEG with a depth map behind the picture
        raise DataError(f"{name}: animated or of several pages; save the one to use as PNG")


def _too_large(name: str, size: str, max_pixels: int) -> DataError:
    return DataError(f"{name}: {size} over {max_pixels} pixels; scale it down or raise max_pixels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {ascii(twice)[:80]} stands twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _line(error: BaseException) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:200]
