"""Plain pictures of what was measured, as SVG: lines over a measure, and bars side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

WIDTH, HEIGHT, LEFT, LOW = 640, 360, 60, 40
COLOURS = ("#b5532a", "#2a6fb5", "#2a8f4f", "#888888", "#7a4fa0", "#b59a2a", "#3b3b3b")
OURS, OTHERS = "#2a6fb5", "#a8a8a8"


def lines(rows: Mapping[str, Mapping[int, float]], title: str, measure: str) -> str:
    """Draw each row's values over its keys, both as logarithms."""
    sizes = sorted({size for row in rows.values() for size in row})
    logs = [math.log10(value) for row in rows.values() for value in row.values()]
    least, most = math.floor(min(logs)), math.ceil(max(logs))

    def place(size: int, value: float) -> tuple[float, float]:
        along = math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])
        up = (math.log10(value) - least) / (most - least)
        return LEFT + 20 + (WIDTH - LEFT - 110) * along, HEIGHT - LOW - (HEIGHT - LOW - 20) * up

    parts = [
        f'<path d="M{LEFT} 15V{HEIGHT - LOW}H{WIDTH - 85}" fill="none" stroke="black"/>',
        f'<text x="{LEFT}" y="12">{title}</text>',
        f'<text x="{WIDTH - 85}" y="{HEIGHT - 6}" text-anchor="end">{measure}</text>',
    ]
    for size in sizes:
        x, _ = place(size, 10.0**least)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - LOW + 18}" text-anchor="middle">{size}</text>')
    for power in range(least, most + 1):
        _, y = place(sizes[0], 10.0**power)
        parts.append(f'<path d="M{LEFT} {y:.0f}H{WIDTH - 85}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g}</text>')
    ends = []
    for colour, (name, row) in zip(cycle(COLOURS), rows.items(), strict=False):
        points = [place(size, row[size]) for size in sizes if size in row]
        if points:
            path = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            ends.append((points[-1][1], points[-1][0], name, colour))
    lowest = float(HEIGHT)
    for y, x, name, colour in sorted(ends, reverse=True):
        lowest = min(y + 4, lowest - 15)  # names do not stand on one another
        parts.append(f'<text x="{x + 8:.0f}" y="{lowest:.0f}" fill="{colour}">{name}</text>')
    return _page(parts, HEIGHT)


def bars(charts: Sequence[tuple[str, Mapping[str, float]]], ours: tuple[str, ...]) -> str:
    """Draw charts of horizontal bars below one another; what begins with one of `ours` stands out."""
    parts, y = [], 10
    for title, row in charts:
        parts.append(f'<text x="10" y="{y + 10}" font-weight="bold">{title}</text>')
        y += 20
        most = max(row.values())
        for name, value in row.items():
            colour = OURS if name.startswith(ours) else OTHERS
            length = (WIDTH - 300) * value / most
            parts.append(f'<text x="210" y="{y + 13}" text-anchor="end">{name}</text>')
            parts.append(f'<rect x="218" y="{y}" width="{length:.0f}" height="17" fill="{colour}"/>')
            parts.append(f'<text x="{224 + length:.0f}" y="{y + 13}">{value:.3g}</text>')
            y += 22
        y += 14
    return _page(parts, y)


def _page(parts: Sequence[str], height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="{WIDTH}" height="{height}" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])
