"""The charts are read back as XML; places on them follow from the size of the frame."""

import xml.etree.ElementTree as ElementTree

from eval.curves import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, line_chart


def drawn(svg):
    root = ElementTree.fromstring(svg)
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in root.iter("polyline")
    ]
    return lines, [text.text for text in root.iter("text")]


def test_the_corners_of_the_data_are_the_corners_of_the_frame():
    lines, _ = drawn(line_chart("loss", {"a": [(0, 1.0), (10, 3.0)], "b": [(5, 2.0)]}))
    left, right, top, bottom = LEFT, WIDTH - 8, TOP, HEIGHT - BOTTOM
    assert lines == [[(left, bottom), (right, top)], [((left + right) / 2, (top + bottom) / 2)]]


def test_title_names_and_range_are_written():
    _, texts = drawn(line_chart("reward <margin>", {"A & B": [(0, 0.25), (1, 4.0)]}))
    assert texts[0] == "reward <margin>"
    assert "A & B" in texts and "4" in texts and "0.25" in texts


def test_lines_without_points_are_left_out():
    lines, texts = drawn(line_chart("x", {"empty": [], "full": [(0, 0), (1, 1)]}))
    assert len(lines) == 1 and "empty" not in texts


def test_a_constant_line_runs_through_the_middle():
    lines, _ = drawn(line_chart("x", {"flat": [(0, 7), (1, 7)]}))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert [y for _, y in lines[0]] == [middle, middle]


def test_a_chart_without_data_is_still_a_chart():
    lines, texts = drawn(line_chart("nothing yet", {}))
    assert lines == [] and texts[0] == "nothing yet"


def test_more_lines_than_colours():
    names = {f"line {i}": [(0, i), (1, i + 1)] for i in range(6)}
    lines, _ = drawn(line_chart("many", names))
    assert len(lines) == 6
