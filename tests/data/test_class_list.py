import json

import numpy as np
import pytest

from popen.data.class_list import ClassList, colour_label, read_class_list, words
from popen.data.safe_io import DataError

FORMS = {
    "names.txt": ("Sky\n\nSignSymbol\n", {0: "Sky", 1: "SignSymbol"}),
    "labels.txt": ("0: unlabeled\n1: person\n171: wall-brick\n", {0: "unlabeled", 1: "person", 171: "wall-brick"}),
    "objectInfo150.txt": (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n"
        "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n",
        {1: "wall", 2: "building, edifice"},
    ),
    "list.json": ('["wall", "sky"]', {0: "wall", 1: "sky"}),
    "numbers.json": ('{"wall": 4, "sky": 2}', {4: "wall", 2: "sky"}),
    "config_v2.0.json": ('{"labels": [{"readable": "Bird", "color": [1, 2, 3]}]}', {0: "Bird"}),
}
COLOURS = {
    "label_colors.txt": "64 128 64\tAnimal\n192 0 128\tArchway\n",
    "tabs.txt": "64\t128\t64\tAnimal\n192\t0\t128\tArchway\n",
    "class_dict.csv": "name,r,g,b\nAnimal,64,128,64\nArchway, 192, 0, 128\n",
    "colours.json": '{"Animal": [64, 128, 64], "Archway": [192, 0, 128]}',
}


@pytest.mark.parametrize("name", FORMS)
def test_numbers(tmp_path, name):
    text, names = FORMS[name]
    (tmp_path / name).write_text(text)
    assert read_class_list(tmp_path / name) == ClassList(names)


@pytest.mark.parametrize("name", COLOURS)
def test_colours(tmp_path, name):
    (tmp_path / name).write_text(COLOURS[name])
    expected = {64 * 65536 + 128 * 256 + 64: "Animal", 192 * 65536 + 128: "Archway"}
    assert read_class_list(tmp_path / name) == ClassList(expected, is_coloured=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "no class in it"),
        ("a.txt", "0: sky\nroad\n", "a.txt:2: not as the lines before it, which give numbers"),
        ("a.txt", "0: sky\n0: road\n", "'sky' and 'road' have the same number"),
        ("a.txt", "300: sky\n", "'sky': 300 is no value of an 8-bit PNG"),
        ("a.csv", "sky,1,2,256\n", "a.csv:1: expected a colour"),
        ("a.csv", "sky,1,2,3\nroad,1,2\n", "a.csv:2: not as the lines before it, which give colours"),
        ("a.json", "[]", "no class in it"),
        ("a.json", '["sky", ""]', "class 1: no name"),
        ("a.json", '["sky", 3]', "class 1: no name"),
        ("a.json", '{"sky": "blue"}', "'sky': expected a number or"),
        ("a.json", '{"sky": [1, 2, 3], "road": 4}', "'road': expected a colour"),
        ("a.json", '{"sky": [1, 2, true]}', "'sky': expected a colour"),
        ("a.json", "3", "expected a list of names"),
        ("a.json", json.dumps({"labels": [{"name": "x"}]}), "class 0: no name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"^[^\n]*$") as error:
        read_class_list(tmp_path / name)
    assert message in str(error.value)


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"sky\n\xffroad\n")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8"):
        read_class_list(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SignSymbol", "sign symbol"),
        ("car_(automobile)", "car"),
        ("building, edifice", "building"),
        ("traffic_light", "traffic light"),
        ("tv", "tv"),
    ],
)
def test_words(name, expected):
    assert words(name) == expected


def test_labels_of_both_sorts_of_png():
    index = np.array([[0, 255]], dtype=np.uint8)
    colours = np.array([[[255, 0, 1], [0, 2, 0]]], dtype=np.uint8)
    assert ClassList({0: "sky"}).labels_HW(index, "a.png").tolist() == [[0, 255]]
    expected = [[colour_label(255, 0, 1), colour_label(0, 2, 0)]]
    assert expected == [[16_711_681, 512]]
    assert ClassList({0: "sky"}, True).labels_HW(colours, "a.png").tolist() == expected
    with pytest.raises(DataError, match=r"a\.png: the class list has numbers and this is a colour PNG"):
        ClassList({0: "sky"}).labels_HW(colours, "a.png")
    with pytest.raises(DataError, match=r"a\.png: the class list has colours and this is an index PNG"):
        ClassList({0: "sky"}, True).labels_HW(index, "a.png")
