#!/usr/bin/env python3
"""The page of `simulate --report` in a browser: `browser.py DUALWEAVE [FOLDER]`, with a folder for screenshots to be kept in.

It renders, its numbers are those of `simulate --json`, pointers and keys do what they should, and nothing is said in the console. The numbers
are read from the page's text and from what it says of items under the pointer."""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

FIRST_PAINT_MS = 2000
"""For 16 ranks and 120 micro-batches."""
NAME = """</script><script>document.title='broken'</script><img src=x onerror="document.title='broken'">'&<!--"""


def seconds(ns):
    """As the page writes durations (src/units.rs)."""
    for limit, unit, digits, name in [(10**7, 10**3, 1, "µs"), (10**10, 10**6, 1, "ms")]:
        if 10**4 <= ns < limit:
            return f"{ns / unit:.{digits}f} {name}"
    return f"{ns} ns" if ns < 10**4 else f"{ns / 10**9:.2f} s"


class Plans:
    """Compiled plans and their pages."""

    def __init__(self, dualweave, folder):
        self.dualweave, self.folder = dualweave, folder

    def run(self, *args):
        return subprocess.run([self.dualweave, *args], cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def compile(self, name, job, *args):
        self.run("compile", Path("examples", job, "job.ron").absolute(), "-o", f"{name}.ron", *args)

    def report(self, name, *args):
        """Its address, and the JSON of the same plan."""
        self.run("simulate", f"{name}.ron", "--report", f"{name}.html", *args)
        return (self.folder / f"{name}.html").as_uri(), json.loads(self.run("simulate", f"{name}.ron", "--json"))


@contextmanager
def opened(browser, address, **options):
    """A page that must neither complain nor ask for anything but itself."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url == address or said.append(f"asks for {request.url}"))
    page.goto(address)
    page.wait_for_function("globalThis.dualweave && performance.getEntriesByName('drawn').length")
    yield page
    assert not said, said
    context.close()


def place(page, rank, time_ns, lane="compute"):
    """Where on the screen a rank's lane is at a time."""
    return page.evaluate(
        """async ([rank, time, kind]) => {
          const { timelines: [timeline], view } = dualweave.page;
          const lane = timeline.lanes.find((lane) => lane.rank.number === rank && lane.kind === kind);
          timeline.canvas.scrollIntoView();
          // Scrolling hides what was said, in the frame after.
          for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
          const box = timeline.canvas.getBoundingClientRect();
          return [box.left + ((time - view.from) / (view.to - view.from)) * box.width, box.top + lane.y + 2];
        }""",
        [rank, time_ns, lane],
    )


def tip(page, rank, time_ns, lane="compute"):
    """What the page says of what is there."""
    page.mouse.move(0, 0)
    page.mouse.move(*place(page, rank, time_ns, lane))
    return page.inner_text("#tip") if page.is_visible("#tip") else ""


def view(page):
    return page.evaluate("[dualweave.page.view.from, dualweave.page.view.to]")


def painted(page, selector):
    """How many colours a canvas has."""
    return page.evaluate(
        """(selector) => {
          const canvas = document.querySelector(selector);
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          return new Set(new Uint32Array(data.buffer)).size;
        }""",
        selector,
    )


def numbers_are_the_jsons(page, told):
    """Text and exact values of headline and tables, and times of every item."""
    rates = ["tokens_per_s", "mfu", "gpu_hours_per_trillion_tokens", "bubble_share", "exposed_share"]
    for key in ["step_ns", "timetable_makespan_ns", *rates]:
        assert float(page.get_attribute(f"#summary [data-{key}]", f"data-{key}")) == told[key], key
    assert page.inner_text("#summary [data-step_ns] strong") == seconds(told["step_ns"])
    rows = page.locator("#numbers table.ranks").first.locator("tbody tr")
    assert rows.count() == len(told["ranks"])
    for rank in told["ranks"]:
        row = rows.nth(rank["rank"])
        for key in ["busy_ns", "communication_ns", "exposed_ns", "bubble_ns"]:
            cell = row.locator(f"[data-{key}]")
            assert int(cell.get_attribute(f"data-{key}")) == rank[key]
            assert cell.inner_text() == f"{100 * rank[key] / told['step_ns']:.1f} %", (key, rank["rank"])
        assert int(row.locator("[data-need_bytes]").get_attribute("data-need_bytes")) == rank["memory"]["need_bytes"]
    drawn = page.evaluate(
        "dualweave.report.plans[0].ranks.map((rank) => Array.from(rank.start, (start, item) => [rank.task(item), start, rank.end[item]]))"
    )
    for rank, items in zip(told["ranks"], drawn, strict=True):
        assert items == [[item["task"], item["start_ns"], item["end_ns"]] for item in rank["items"]]
    sums = page.evaluate("dualweave.report.plans[0].ranks.map((rank) => rank.gaps.reduce((sum, gap) => sum + gap.idle, 0))")
    assert sums == [rank["bubble_ns"] for rank in told["ranks"]]
    peaks = page.evaluate("dualweave.report.plans[0].ranks.map((rank) => Math.max(...memoryOf(rank).total))")
    assert peaks == [rank["memory"]["peak_bytes"] for rank in told["ranks"]]


def pointers_work(page, told):
    rank = told["ranks"][3]
    item = next(item for item in rank["items"] if item["task"].startswith("FB"))
    middle = (item["start_ns"] + item["end_ns"]) / 2
    said = tip(page, 3, middle)
    assert item["task"] in said and seconds(item["end_ns"] - item["start_ns"]) in said and "SMs" not in said.split("\n")[0], said
    # A gap says what it waited for, by name.
    gap = page.evaluate("dualweave.report.plans[0].ranks[0].gaps.toSorted((a, b) => b.idle - a.idle)[0]")
    said = tip(page, 0, (gap["start"] + gap["end"]) / 2)
    awaited = told["ranks"][gap["awaited"]["rank"]]["items"][gap["awaited"]["item"]]
    assert seconds(gap["idle"]) in said and gap["text"] in said and awaited["task"] in said, said
    assert awaited["end_ns"] <= gap["end"] * (1 + 1e-12)

    # Zoom about the pointer: what is under it stays there.
    assert view(page) == [0, told["step_ns"]]
    x, y = place(page, 3, middle)
    x = round(x)  # Wheels turn at whole pixels.
    left, width = page.evaluate("(({ left, width }) => [left, width])(dualweave.page.timelines[0].canvas.getBoundingClientRect())")
    under = (x - left) / width * told["step_ns"]
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    for _ in range(8):
        page.mouse.wheel(0, -60)
    page.keyboard.up("Control")
    page.wait_for_function("dualweave.page.view.to - dualweave.page.view.from < dualweave.page.all / 30")
    assert abs(place(page, 3, under)[0] - x) < 1
    program = page.evaluate("(item) => report.plans[0].ranks[3].of(item, 'program')", rank["items"].index(item))
    exchanges = [op for op in told["programs"][program]["ops"] if op["component"] in ("Dispatch", "Combine")]
    after = [op for op in exchanges if item["start_ns"] + op["start_ns"] > middle]
    said = tip(page, 3, item["start_ns"] + (after[0]["start_ns"] + after[0]["end_ns"]) / 2, "exchange")
    assert after[0]["component"] in said and f"{after[0]['sms']} SMs" in said, said
    # Drag to move; a click keeps, and shows the program.
    before = view(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 100, y, steps=4)
    page.mouse.up()
    moved = (view(page)[0] - before[0]) / (before[1] - before[0])
    assert abs(moved - 100 / width) < 1e-3, moved
    page.mouse.click(*place(page, 3, middle))
    page.wait_for_selector(".mark.kept")
    assert item["task"] in page.inner_text("#said")
    page.click("[data-do=fit]")
    assert view(page) == [0, told["step_ns"]]


def keys_work(page, told):
    page.focus(".labels button[data-rank='1']")
    assert page.inner_text("#rank-title") == "Rank 1"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#rank-title") == "Rank 2" and page.input_value("#memory-rank") == "0 2"
    page.keyboard.press("+")
    [start, end] = view(page)
    assert end - start < told["step_ns"] / 1.4
    page.keyboard.press("ArrowRight")
    assert view(page)[0] > start
    page.keyboard.press("0")
    kinds = ("F", "B", "I", "W", "FB", "Update")
    compute = [item for item in told["ranks"][2]["items"] if item["task"].split("(")[0] in kinds]
    for item in compute[:3]:
        page.keyboard.press(".")
        assert item["task"] in page.inner_text("#said"), item
    page.keyboard.press(",")
    assert compute[1]["task"] in page.inner_text("#said")
    page.keyboard.press("Escape")
    page.wait_for_selector(".mark", state="detached")
    page.keyboard.press("Enter")
    assert page.get_attribute(".labels button[data-rank='2']", "aria-expanded") == "true"
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")


def fits(page):
    """Nothing sticks out of the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def hostile(plans):
    """The smallest plan with names that are markup, and numbers that no clock has."""
    text = (plans.folder / "tiny.ron").read_text()
    quoted = NAME.replace("\\", "\\\\").replace('"', '\\"')
    text = text.replace('"tiny"', f'"{quoted}"').replace('schedule: "dualpipe"', f'schedule: "{quoted}"')
    assert text.count("onerror") >= 2
    (plans.folder / "hostile.ron").write_text(text)


def main(dualweave, shots):
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        plans = Plans(Path(dualweave).absolute(), Path(folder))
        plans.compile("deepseek", "deepseek-v3")
        plans.compile("tiny", "tiny")
        plans.compile("other", "tiny", "--schedule", "dualpipev")
        hostile(plans)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        address, told = plans.report("deepseek")
        with opened(browser, address) as page:
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            names = ["first-contentful-paint", "drawn"]
            times = page.evaluate("(names) => names.map((name) => performance.getEntriesByName(name)[0].startTime)", names)
            assert max(times) < FIRST_PAINT_MS, times
            print(f"16 ranks, 120 micro-batches: text after {times[0]:.0f} ms, timelines after {times[1]:.0f} ms")
            assert painted(page, ".timeline canvas") > 20 and painted(page, "#memory-canvas") > 5
            numbers_are_the_jsons(page, told)
            fits(page)
            if shots:
                page.screenshot(path=shots / "report-light.png")
            pointers_work(page, told)
            keys_work(page, told)
            page.pdf(path=plans.folder / "report.pdf", prefer_css_page_size=True)
        with opened(browser, address, color_scheme="dark") as page:
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert dark == "rgb(21, 23, 26)", dark
            if shots:
                page.evaluate("dualweave.page.toggle(dualweave.page.timelines[0], 3); dualweave.page.show(1.2e9, 1.8e9)")
                page.mouse.click(*place(page, 0, 1.48e9))
                page.screenshot(path=shots / "report-dark.png")
        phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
        with opened(browser, address, **phone) as page:
            fits(page)
            page.touchscreen.tap(*place(page, 3, told["step_ns"] / 2))
            assert "rank 3" in page.inner_text("#tip")

        # Without scripts the numbers are there, and no empty drawing.
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(address)
        assert page.inner_text("#summary [data-step_ns] strong") == seconds(told["step_ns"])
        assert page.is_visible("#numbers table.ranks") and not page.is_visible("#memory")

        address, told = plans.report("tiny", "--against", "other.ron")
        with opened(browser, address) as page:
            numbers_are_the_jsons(page, told)
            assert page.locator("figure.timeline").count() == 2 and page.is_visible("#comparison")
            other = json.loads(plans.run("simulate", "other.ron", "--json"))
            assert int(page.locator("#comparison [data-step_ns]").get_attribute("data-step_ns")) == other["step_ns"]
        address, told = plans.report("hostile", "--against", "tiny.ron")
        with opened(browser, address) as page:
            numbers_are_the_jsons(page, told)
            assert NAME in page.title() and page.locator("img").count() == 0
        # An SVG is XML: a browser shows it only if it is well-formed.
        for name in ["tiny", "hostile"]:
            plans.run("simulate", f"{name}.ron", "--svg", f"{name}.svg")
            page = browser.new_page()
            page.goto((plans.folder / f"{name}.svg").as_uri())
            assert page.evaluate("document.documentElement.localName") == "svg"
            assert page.locator("parsererror, script").count() == 0
            assert page.evaluate("document.querySelectorAll('text').length > 4")
        browser.close()


if __name__ == "__main__":
    begun = time.monotonic()
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(f"the report in a browser: {time.monotonic() - begun:.0f} s")
