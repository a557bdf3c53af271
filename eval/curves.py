"""Small line charts as inline SVG, for reports that need no file beside them."""

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
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{"".join(drawn)}</svg>'
