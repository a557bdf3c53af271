"""Small charts as SVG: lines over steps, and differences with their intervals."""

import html

COLOURS = ("#888", "#d1495b", "#00798c", "#edae49")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 200, 46, 26, 28


def line_chart(title: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """One chart of named lines of (x, y) points; lines without points are left out."""
    lines = {name: points for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points] or [0, 1]
    ys = [y for points in lines.values() for _, y in points] or [0, 1]
    low, high = min(ys), max(ys)
    if high == low:
        low, high = low - 0.5, high + 0.5

    def place(x: float, y: float) -> str:
        share_x = (x - min(xs)) / max(max(xs) - min(xs), 1e-9)
        share_y = (y - low) / (high - low)
        return f"{LEFT + share_x * (WIDTH - LEFT - 8):.1f},{HEIGHT - BOTTOM - share_y * (HEIGHT - BOTTOM - TOP):.1f}"

    drawn = [f'<text x="{LEFT}" y="14" font-size="13">{html.escape(title)}</text>']
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        drawn.append(
            f'<text x="{LEFT + 120 * number}" y="{HEIGHT - 4}" font-size="10" fill="{colour}">'
            f"{html.escape(name)}</text>"
        )
    for value, y in ((high, TOP + 4), (low, HEIGHT - BOTTOM)):
        drawn.append(f'<text x="{LEFT - 6}" y="{y}" font-size="10" text-anchor="end">{value:.3g}</text>')
    axis = f"M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - 8}"
    drawn.append(f'<path d="{axis}" fill="none" stroke="#bbb"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'font-family="system-ui,sans-serif" role="img">{"".join(drawn)}</svg>'
    )


ROW, NAMES, BAR = 18, 150, 330  # pixels: height of a row, width of the names, width of the bars
MARGIN = 12


def interval_chart(title: str, rows: dict[str, tuple[float, float, float]]) -> str:
    """One line per name: a dot at the value and a bar over its interval (value, low, high); zero is marked."""
    ends = [0.0, *(end for row in rows.values() for end in row)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    place = lambda x: NAMES + MARGIN + (x - low) / span * BAR  # noqa: E731
    height = TOP + ROW * len(rows) + 20
    bottom = height - 20
    drawn = [f'<text x="4" y="14" font-size="13">{html.escape(title)}</text>']
    drawn.append(f'<path d="M{place(0):.1f},{TOP} V{bottom}" stroke="#bbb"/>')
    for number, (name, (value, left, right)) in enumerate(rows.items()):
        y = TOP + ROW * (number + 0.5)
        colour = COLOURS[0] if left <= 0 <= right else COLOURS[2] if value > 0 else COLOURS[1]
        drawn.append(f'<text x="{NAMES}" y="{y + 4}" font-size="11" text-anchor="end">{html.escape(name)}</text>')
        drawn.append(f'<path d="M{place(left):.1f},{y} H{place(right):.1f}" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="3.5" fill="{colour}"/>')
    for value in (low, high):
        drawn.append(
            f'<text x="{place(value):.1f}" y="{height - 6}" font-size="10" text-anchor="middle">{value:+.2f}</text>'
        )
    width = NAMES + BAR + 3 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="system-ui,sans-serif" role="img">{"".join(drawn)}</svg>'
    )
