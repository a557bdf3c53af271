"""The charts are read back as XML; places on them follow from the size of the frame."""

import xml.etree.ElementTree as ElementTree

from eval.charts import BAR, BOTTOM, COLOURS, HEIGHT, LEFT, MARGIN, NAMES, TOP, WIDTH, interval_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg):
    root = ElementTree.fromstring(svg)
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in root.iter(f"{SVG}polyline")
    ]
    return lines, [text.text for text in root.iter(f"{SVG}text")]


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


def test_intervals_lie_where_their_numbers_say():
    """From −1 to 3: zero is a quarter of the way; a bar that spans zero is grey, one above and one below are not."""
    rows = {"none": (0.5, -1.0, 2.0), "A & B": (2.0, 1.0, 3.0), "worse": (-0.5, -0.75, -0.25)}
    root = ElementTree.fromstring(interval_chart("gain", rows))
    left = NAMES + MARGIN
    zero, *bars = [path.get("d") for path in root.iter(f"{SVG}path")]
    assert zero.startswith(f"M{left + BAR / 4:.1f},")
    assert [bar.split(",")[0] for bar in bars] == [f"M{left + BAR * x:.1f}" for x in (0, 0.5, 0.0625)]
    assert [bar.split("H")[1] for bar in bars] == [f"{left + BAR * x:.1f}" for x in (0.75, 1, 0.1875)]
    dots = list(root.iter(f"{SVG}circle"))
    assert [dot.get("cx") for dot in dots] == [f"{left + BAR * x:.1f}" for x in (0.375, 0.75, 0.125)]
    assert [dot.get("fill") for dot in dots] == [COLOURS[0], COLOURS[2], COLOURS[1]]
    assert {"gain", "none", "A & B", "worse", "-1.00", "+3.00"} == {text.text for text in root.iter(f"{SVG}text")}


def test_nothing_to_compare_is_still_a_chart():
    assert len(list(ElementTree.fromstring(interval_chart("gain", {})).iter(f"{SVG}circle"))) == 0
