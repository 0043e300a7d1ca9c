#!/usr/bin/env python3
"""Opens a page of `loglinear eval --html` in headless Chromium and uses it as people do.

    browser_evaluation.py PAGE.html [FOLDER]      FOLDER: where screenshots go

Exit code 0 when everything holds, 1 with a line for each thing that does not, 77 where there is no Chromium (Debian:
apt-get install chromium).
"""

import json
import sys

from browser_page import appearances, contrast, expect, main


def use(browser, data, folder):
    def count(selector):
        return browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    # A mark for every number, none outside of its chart, and a row of a table for each.
    if "task" in data:
        lengths = {t["length"] for t in data["totals"]}
        items = {t["items"] for t in data["totals"]}
        asked = sum(c["answers"] > 0 for c in data["cells"])
        expect(count("figure .cell:not(.total) rect") == asked, f"{count('figure .cell:not(.total) rect')} cells, want {asked}")
        expect(count("figure .cell.total rect") == len(data["totals"]), "a total is missing in the maps")
        shown = browser.evaluate("[...document.querySelectorAll('figure .cell:not(.total) rect + text')].map(t => t.textContent)")
        want = [c["accuracy"] for c in data["cells"] if c["answers"]]
        expect(len(shown) == len(want) and all(abs(float(s) - 100 * w) <= .5001 for s, w in zip(shown, want)),
               f"the map shows {shown}, want {want}")
        expect(count("#lengths .point") == len(data["totals"]), f"{count('#lengths .point')} points by length")
        expect(count("#lengths .bar") == len(data["totals"]), "an interval is missing")
        expect(count("#lengths .chart .series") == len(items), "a series is missing")
        rows = len(data["totals"]) + len(items) * len(lengths)
        expect(count("tbody tr") == rows, f"{count('tbody tr')} rows of tables, want {rows}")
        colours = browser.evaluate("[...document.querySelectorAll('#lengths .chart .series')].map(g => getComputedStyle(g.querySelector('.point')).fill)")
        expect(len(set(colours)) == len(items), "two series have one colour")
    else:
        expect(count("#positions .point") == len(data["positions"]), f"{count('#positions .point')} points by position")
        expect(count("tbody tr") == len(data["positions"]), "the table does not have all rows")

    figures = count("figure")
    expect(figures > 0 and count("figure svg.chart[role=img][aria-label]") == figures, "a chart has no name")
    expect(count("figure + .scroll table") == figures, "a chart has no table below")
    expect(data["command"] in browser.evaluate("document.querySelector('#about').textContent"), "the command is not shown")
    expect(data["model"]["family"] in browser.evaluate("document.querySelector('#about').textContent"), "the model is not shown")
    expect(browser.evaluate("document.title") == browser.evaluate("document.querySelector('h1').textContent") != "", "no title")

    # With nothing but the keyboard: the download, then every table, which can be scrolled.
    browser.evaluate("document.activeElement.blur()")
    for i in range(figures + 1):
        browser.key("Tab", 9)
        here = browser.evaluate("document.activeElement.id || document.activeElement.className")
        expect(here == ("scroll" if i else "download"), f"Tab number {i + 1} reaches {here}")
        expect(browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "the focus cannot be seen")
    expect(json.loads(browser.evaluate("fetch(document.getElementById('download').href).then(r => r.text())")) == data,
           "the download is not the data")

    for where, panel in appearances(browser, 10.9, folder):
        outside = browser.evaluate("""[...document.querySelectorAll('figure')].flatMap(f => {
            const box = f.getBoundingClientRect();
            return [...f.querySelectorAll('.point, rect, text')].filter(p => { const b = p.getBoundingClientRect();
              return b.left < box.left || b.right > box.right || b.top < box.top || b.bottom > box.bottom; })
              .map(p => p.textContent || p.outerHTML); })""")
        expect(not outside, f"{where}: outside of the chart: {outside}")
        for fill, text in browser.evaluate("""[...document.querySelectorAll('.cell rect')].map(
                r => [getComputedStyle(r).fill, getComputedStyle(r.nextSibling).fill])"""):
            expect(contrast(fill, text) >= 4.5, f"{where}: {text} on {fill}")
        for colour in browser.evaluate("[...document.querySelectorAll('.series .line')].map(l => getComputedStyle(l).stroke)"):
            expect(contrast(colour, panel) >= 3, f"{where}: a line {colour} on {panel}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], use, __doc__))
