import errno
import gzip
import json
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from popen.data import safe_io
from popen.data.safe_io import (
    DataError,
    StorageError,
    check_image,
    decode_image,
    inflate,
    inside,
    read_bytes,
    read_image,
    read_json,
    read_label_png,
    settle_json,
    write_json,
)

GRADIENT = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)


def png_of_size(width, height):
    """A PNG whose header promises width x height grey pixels, and next to no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return (folder / name).read_bytes()


def frames(folder, name):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return saved(folder, name, pictures[0], save_all=True, append_images=pictures[1:])


BAD_PICTURES = {
    "missing.jpg": (lambda folder: None, "no such file"),
    "empty.jpg": (lambda folder: b"", "empty"),
    "page.jpg": (lambda folder: b"<!DOCTYPE html><html>404</html>", "not a picture"),
    "truncated.jpg": (lambda folder: saved(folder, "t.jpg", Image.fromarray(GRADIENT))[:-400], "cannot be decoded"),
    "truncated.png": (lambda folder: saved(folder, "t.png", Image.fromarray(GRADIENT))[:-60], "cannot be decoded"),
    "animated.gif": (lambda folder: frames(folder, "a.gif"), "animated"),
    "animated.png": (lambda folder: frames(folder, "a.png"), "animated"),
    "animated.webp": (lambda folder: frames(folder, "a.webp"), "animated"),
    "pages.tiff": (lambda folder: frames(folder, "a.tiff"), "animated"),
    "print.jpg": (lambda folder: saved(folder, "c.jpg", Image.new("CMYK", (8, 8))), "CMYK"),
    "deep.png": (lambda folder: saved(folder, "d.png", Image.fromarray(np.ones((8, 8), np.uint16))), "8 bits"),
    "float.tiff": (lambda folder: saved(folder, "f.tiff", Image.new("F", (8, 8))), "8 bits"),
    "lab.tiff": (lambda folder: saved(folder, "l.tiff", Image.new("LAB", (8, 8))), "colour mode"),
    "dot.png": (lambda folder: saved(folder, "o.png", Image.new("RGB", (1, 1))), "1x1"),
    "line.png": (lambda folder: saved(folder, "o.png", Image.new("L", (1, 6000))), "1x6000"),
    "large.png": (lambda folder: png_of_size(8000, 8000), "over 50000000 pixels"),
    "warned.png": (lambda folder: png_of_size(12_000, 12_000), "over 50000000 pixels"),  # Pillow warns
    "bomb.png": (lambda folder: png_of_size(60_000, 60_000), "over 50000000 pixels"),  # Pillow raises
    "eps.jpg": (lambda folder: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture_is_named_in_one_line(tmp_path, name):
    make, message = BAD_PICTURES[name]
    data = make(tmp_path)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (6, 4), "white").convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (255, 255, 255))


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "half.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "key.png", transparency=(9, 9, 9))
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "half.png").getpixel((0, 0)) == (127, 127, 127)
    assert read_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (4, 8)
    assert check_image(image, "again").size == (4, 8)
    assert image.info == {}


def test_pixels_are_those_of_the_file(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), GRADIENT)
    assert np.array_equal(np.asarray(decode_image((tmp_path / "a.png").read_bytes(), "a")), GRADIENT)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("CMYK", (4, 4)), "CMYK"),
        (Image.new("I;16", (4, 4)), "8 bits"),
        (Image.new("I", (4, 4)), "8 bits"),
        (Image.new("RGB", (1, 4)), "1x4"),
        (Image.new("L", (11, 10)), "over 100 pixels"),
        (np.zeros((4, 4)), "not a PIL image"),
    ],
)
def test_pictures_in_memory_are_held_to_the_same(image, message):
    with pytest.raises(DataError, match=f"sample 7: .*{message}"):
        check_image(image, "sample 7", max_pixels=100)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]), st.data())
def test_damaged_bytes_give_a_picture_or_a_data_error(form, data):
    import io

    buffer = io.BytesIO()
    Image.fromarray(GRADIENT[:12, :12]).save(buffer, form)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(damaged)))]
    try:
        assert decode_image(bytes(damaged), "x", max_pixels=10_000).mode == "RGB"
    except DataError as error:
        assert "\n" not in str(error)


def test_label_png_keeps_its_numbers(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "rgb.png")
    Image.fromarray(GRADIENT[..., 0]).save(tmp_path / "grey.png")
    palette = Image.fromarray(GRADIENT[..., 0] % 4).convert("L")
    palette.putpalette([7, 7, 7] * 4)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_label_png(tmp_path / "rgb.png"), GRADIENT)
    assert np.array_equal(read_label_png(tmp_path / "grey.png"), GRADIENT[..., 0])
    assert np.array_equal(read_label_png(tmp_path / "palette.png"), GRADIENT[..., 0] % 4)
    assert read_label_png(tmp_path / "rgb.png").dtype == np.uint8


def test_label_png_refuses_what_would_change(tmp_path):
    Image.fromarray(np.ones((8, 8), np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "alpha.png")
    Image.new("1", (8, 8)).save(tmp_path / "bits.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    (tmp_path / "short.png").write_bytes(saved(tmp_path, "rgb.png", Image.fromarray(GRADIENT))[:-60])
    for name in ("deep.png", "alpha.png", "bits.png", "photo.jpg", "short.png", "none.png"):
        with pytest.raises(DataError, match=name):
            read_label_png(tmp_path / name)


BAD_JSON = {
    "NaN": (b'{"a": NaN}', "not a finite"),
    "Infinity": (b"[-Infinity]", "not a finite"),
    "overflow": (b"[1e999]", "not a finite"),
    "duplicate": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
    "deep": (b"[" * 200_000 + b"]" * 200_000, "too deeply"),
    "huge int": (b"[" + b"9" * 5000 + b"]", "4300"),
    "not utf-8": (b'{\n"a": "\xff"}', ":2: not UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "lone surrogate": (b'["\\ud800"]', "without its partner"),
    "syntax": (b'{\n"a": 1,\n}', ":3: not JSON|:2: not JSON"),
    "trailing": (b"{} {}", ":1: not JSON"),
    "empty": (b"", "empty"),
    "large": (b'"' + b"a" * 2_000_000 + b'"', "over 1000000 bytes"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_named_in_one_line(tmp_path, name):
    data, message = BAD_JSON[name]
    path = tmp_path / "data.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_json(path, max_bytes=10**6)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_good_json_is_read_with_and_without_bom(tmp_path):
    value = {"a": [1, 2.5, "ü", None, True], "b": {"a": "\U0001f600 \\ud800"}}
    for data in (json.dumps(value).encode(), b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()):
        (tmp_path / "a.json").write_bytes(data)
        assert read_json(tmp_path / "a.json") == value


def test_another_encoding_is_tried_where_the_format_allows_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('["café’s"]'.encode("cp1252"))
    assert read_json(path, fallback="cp1252") == ["café’s"]
    path.write_bytes('["café’s"]'.encode())
    assert read_json(path, fallback="cp1252") == ["café’s"]
    path.write_bytes(b'\n["\x81"]')  # stands for nothing in either
    with pytest.raises(DataError, match=r"a\.json:2: not UTF-8 or cp1252; save the file as UTF-8"):
        read_json(path, fallback="cp1252")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(min_size=1, max_size=40) | st.text('[]{}":,0123456789.eE-naulstrfNIity\\d', min_size=1).map(str.encode)
)
def test_json_fuzz_gives_a_value_or_a_data_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(data)
    try:
        json.dumps(read_json(path), allow_nan=False, ensure_ascii=False).encode()
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "name",
    [
        *("", "/etc/passwd", "../a", "a/../../x", "a/..", "..", "a\\b", "..\\a", "a\0b", "C:/x", "//host/share"),
        *("%2e%2e/a", "%2Fetc", "a/%2e./b", "．．/a", "／etc", "‥/a", "link/a", "loop/a", "x" * 5000, "\ud800"),
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(DataError, match="file name") as error:
        inside(root, name)
    assert "\n" not in str(error.value)


def test_names_inside_are_joined(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    assert inside(tmp_path, "sub/a..b.jpg") == (tmp_path / "sub" / "a..b.jpg").resolve()
    assert inside(tmp_path, "link/a.jpg") == (tmp_path / "sub" / "a.jpg").resolve()
    with pytest.raises(DataError, match="expected text"):
        inside(tmp_path, 7)


def test_write_json_round_trips_and_leaves_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 0.1, "ü"]})
    write_json(tmp_path / "a.json", {"b": 2})
    assert read_json(tmp_path / "a.json") == {"b": 2}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": {1}}, "\ud800"])
def test_write_json_refuses_what_json_is_not(tmp_path, value):
    with pytest.raises(DataError, match=r"a\.json: not written"):
        write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safe_io.os, step, full)
    with pytest.raises(StorageError, match=r"a\.json: .*No space left.*old file is intact") as error:
        write_json(path, {"new": 1})
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_first_settles_what_a_file_holds(tmp_path):
    assert settle_json(tmp_path / "a.json", {"first": 1}) == {"first": 1}
    assert settle_json(tmp_path / "a.json", {"second": 2}) == {"first": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_of_two_that_settle_at_once_one_decides(tmp_path, monkeypatch):
    """The other writes between our look and our link."""
    link = os.link

    def late(temporary, path):
        monkeypatch.setattr(safe_io.os, "link", link)
        settle_json(path, {"other": 1})
        link(temporary, path)

    monkeypatch.setattr(safe_io.os, "link", late)
    assert settle_json(tmp_path / "a.json", {"own": 2}) == {"other": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_settles_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safe_io.os, "link", full)
    with pytest.raises(StorageError, match=r"a\.json: .*No space left"):
        settle_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == []


def test_write_json_into_no_folder(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        write_json(tmp_path / "none" / "a.json", {})


def test_packed_bytes_are_unpacked_no_further_than_asked():
    packed = gzip.compress(b"one") + gzip.compress(b"two" + bytes(1000))
    assert inflate(packed, "x", 5) == b"onetw"
    assert inflate(packed, "x", 10_000) == b"onetwo" + bytes(1000)
    for broken in (b"plain", packed[:-3], b"\x1f\x8b\x08\x00"):
        with pytest.raises(DataError, match=r"^x: cannot be unpacked \(.*\); fetch or export it again"):
            inflate(broken, "x", 10_000)


def test_a_file_is_read_whole_even_where_it_does_not_know_its_size(tmp_path):
    """A pipe has size 0, and a limit holds for it as for a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for limit in (100, 50):
        writer = threading.Thread(target=pipe.write_bytes, args=(b"x" * 80,))
        writer.start()
        if limit == 100:
            assert read_bytes(pipe, limit) == b"x" * 80
        else:
            with pytest.raises(DataError, match="over 50 bytes"):
                read_bytes(pipe, limit)
        writer.join()
