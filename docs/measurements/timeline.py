"""Draws one item of a measured trace (`dualweave run PLAN --backend cuda --trace FILE`) as SVG: what ran beside what on a GPU.

    python3 docs/measurements/timeline.py TRACE.json 'FB(1,1;0,0)' > docs/gpu-overlap.svg
"""

import gzip
import json
import sys

COLOURS = {"Attention": "#4c78a8", "Mlp": "#f58518", "Dispatch": "#54a24b", "Combine": "#b279a2"}
WIDTH, LEFT, HIGH = 1100, 90, 46


def main(path: str, item: str) -> None:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    spans = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    whole = next(e for e in spans if e["name"] == item)
    start, length = whole["ts"], whole["dur"]
    inside = [e for e in spans if " of unit " in e["name"] and start <= e["ts"] < start + length]
    rows = ["compute", "exchanges"]

    def x(time: float) -> float:
        return LEFT + (time - start) / length * (WIDTH - LEFT - 40)

    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{40 + HIGH * 2 + 40}" font-family="sans-serif" font-size="12">')
    print('<rect width="100%" height="100%" fill="white"/>')
    print(f'<text x="10" y="20">{item} as measured on one of two H100: {length / 1000:.1f} ms</text>')
    for number, row in enumerate(rows):
        print(f'<text x="10" y="{40 + HIGH * number + 24}">{row}</text>')
    for event in inside:
        what, _, rest = event["name"].partition(" of unit ")
        component, phase = what.split()[:2]
        chunk = rest.split(" of ")[1]
        y = 34 + HIGH * rows.index(threads[event["pid"], event["tid"]])
        wide = max(x(event["ts"] + event["dur"]) - x(event["ts"]), 0.5)
        colour = COLOURS.get(component, "#9d9d9d")
        print(f'<g><title>{event["name"]}: {event["dur"] / 1000:.3f} ms</title>')
        print(f'<rect x="{x(event["ts"]):.1f}" y="{y}" width="{wide:.1f}" height="{HIGH - 8}" fill="{colour}" '
              f'fill-opacity="{1 if phase == "F" else 0.65}" stroke="white"/>')
        if wide > 60:
            print(f'<text x="{x(event["ts"]) + 4:.1f}" y="{y + 16}" fill="white">{what}</text>')
            print(f'<text x="{x(event["ts"]) + 4:.1f}" y="{y + 31}" fill="white" font-size="10">{chunk} {event["dur"] / 1000:.1f} ms</text>')
        print("</g>")
    y = 40 + HIGH * 2
    for tick in range(0, int(length / 1000) + 1, 5):
        print(f'<text x="{x(start + tick * 1000):.1f}" y="{y + 14}" font-size="10">{tick} ms</text>')
    print("</svg>")


if __name__ == "__main__":
    main(*sys.argv[1:])
