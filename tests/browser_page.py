#!/usr/bin/env python3
"""Opens a page of `loglinear compare --html` in headless Chromium and uses it as people do.

    browser_page.py PAGE.html [FOLDER]      FOLDER: where screenshots go

Speaks Chromium's DevTools protocol over a pipe, with nothing but the standard library. Exit code 0 when everything holds,
1 with a line for each thing that does not, 77 where there is no Chromium (Debian: apt-get install chromium).
"""

import base64
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

NO_BROWSER = 77
SECONDS = 60  # for any single answer


class Browser:
    """A Chromium with one tab."""

    def __init__(self, program, profile):
        def above(fd):  # out of the way of the numbers 3 and 4, on which Chromium reads and writes
            return fcntl.fcntl(fd, fcntl.F_DUPFD, 10)

        commands, self.out = os.pipe()
        self.into, answers = os.pipe()
        commands, answers = above(commands), above(answers)

        def pipes():
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        arguments = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
                     "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--no-sandbox", "about:blank"]
        self.process = subprocess.Popen(arguments, preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self.buffer, self.count, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def read(self):
        end = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], max(0, end - time.monotonic()))
            data = os.read(self.into, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError("Chromium does not answer")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url):
        self.call("Page.navigate", url=url)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self.read())

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def key(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key if key == "Tab" else "Space",
                      windowsVirtualKeyCode=code, text=text if kind == "keyDown" else "")

    def look(self, width, height, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        # What a resize asks for is done before the next frame.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def screenshot(self, path):
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(image))

    def close(self):
        try:
            self.session = None
            self.call("Browser.close")
        except (RuntimeError, OSError):
            pass
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


failed = []


def expect(holds, what):
    if not holds:
        failed.append(what)
        print("FAILED", what, file=sys.stderr)


def luminance(colour):
    parts = [int(x) / 255 for x in colour[colour.index("(") + 1:-1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    a, b = sorted((luminance(a), luminance(b)))
    return (b + 0.05) / (a + 0.05)


SERIES = """Object.fromEntries([...document.querySelectorAll('figure')].map(
    f => [f.id.replace('chart-', ''), [...f.querySelectorAll('svg .series')].map(g => g.dataset.mechanism)]))"""
CHARTS = ["forward_ms", "forward_backward_ms", "peak_bytes", "step_ms", "state_bytes"]
QUALITY = ["recall_accuracy", "bits_per_byte"]


def appearances(browser, smallest, folder):
    """A phone and a screen, light and dark: nothing wider than the window, text of `smallest` pixels that differs from what
    is behind it. Yields where that is and the colour behind a chart, then takes a screenshot into the folder, if there is one.
    """
    for name, width, height in (("phone", 390, 844), ("screen", 1280, 900)):
        for dark in (False, True):
            browser.look(width, height, dark)
            where = f"{name}, {'dark' if dark else 'light'}"
            wide = browser.evaluate("document.documentElement.scrollWidth")
            expect(wide <= width, f"{where}: the page is {wide} wide")
            small = browser.evaluate("""Math.min(...[...document.querySelectorAll('figure text')].map(
                t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))""")
            expect(small >= smallest, f"{where}: text of {small} pixels in a chart")
            style = "getComputedStyle(document.querySelector('%s')).%s"
            page = browser.evaluate(style % ("body", "backgroundColor"))
            panel = browser.evaluate(style % ("figure", "backgroundColor"))
            expect((luminance(page) < 0.1) == dark, f"{where}: the page is {page}")
            for selector in ("body", ".note", "figure text"):
                colour = browser.evaluate(style % (selector, "fill" if selector.endswith("text") else "color"))
                expect(contrast(colour, panel) >= 4.5, f"{where}: {selector} {colour} on {panel}")
            yield where, panel
            if folder:
                browser.screenshot(os.path.join(folder, f"{name}-{'dark' if dark else 'light'}.png"))


def use(browser, data, folder):
    names = [m["name"] for m in data["mechanisms"]]

    def wanted(key, without=()):
        rows = data["rows"] if key in CHARTS else data.get("quality", {}).get("rows", [])
        having = {r["mechanism"] for r in rows if r.get(key)}
        return [n for n in names if n in having and n not in without]

    # The right series in every chart, and in them a point for every number, hollow where it was not measured.
    series = browser.evaluate(SERIES)
    for key in CHARTS + [k for k in QUALITY if wanted(k)]:
        expect(sorted(series.get(key, [])) == sorted(wanted(key)), f"{key}: series {series.get(key)}, want {wanted(key)}")
    for key in CHARTS:
        for hollow in (False, True):
            count = sum(bool(r[key]) and (key in r["extrapolated_keys"]) == hollow for r in data["rows"])
            drawn = browser.evaluate(f"document.querySelectorAll('#chart-{key} .point{'' if hollow else ':not'}"
                                     f"{'.hollow' if hollow else '(.hollow)'}').length")
            expect(drawn == count, f"{key}: {drawn} points are drawn{' hollow' if hollow else ''}, want {count}")
        outside = browser.evaluate(f"""(() => {{ const box = document.querySelector('#chart-{key}').getBoundingClientRect();
            return [...document.querySelectorAll('#chart-{key} .point, #chart-{key} text')].filter(p => {{
              const b = p.getBoundingClientRect();
              return b.left < box.left || b.right > box.right || b.top < box.top || b.bottom > box.bottom; }}).length; }})()""")
        expect(outside == 0, f"{key}: {outside} marks are outside of the chart")
    rows = "[...document.querySelectorAll('#rows tr[data-mechanism]')].filter(r => !r.hidden).length"
    expect(browser.evaluate(rows) == len(data["rows"]), "the table does not have all rows")

    # With nothing but the keyboard: Tab reaches every button, Space toggles.
    browser.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(len(names) + 1):  # the download stands before the buttons
        browser.key("Tab", 9)
        reached.append(browser.evaluate("document.activeElement.dataset.mechanism || document.activeElement.id"))
        if reached[-1] == names[0]:
            expect(browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none",
                   "the focus cannot be seen")
            browser.key(" ", 32, " ")
    expect(reached == ["download"] + names, f"Tab reaches {reached}")
    pressed = "Object.fromEntries([...document.querySelectorAll('button')].map(b => [b.dataset.mechanism, b.getAttribute('aria-pressed')]))"
    expect(browser.evaluate(pressed) == {n: "false" if n == names[0] else "true" for n in names}, "Space does not toggle")
    series = browser.evaluate(SERIES)
    for key in CHARTS + [k for k in QUALITY if wanted(k)]:
        expect(sorted(series.get(key, [])) == sorted(wanted(key, names[:1])), f"{key}: {names[0]} is not hidden")
    left = sum(r["mechanism"] != names[0] for r in data["rows"])
    expect(browser.evaluate(rows) == left, f"the table still shows {names[0]}")
    # By the pointer: back again.
    browser.evaluate("document.querySelector('button').click()")
    expect(browser.evaluate(rows) == len(data["rows"]), f"{names[0]} does not come back")
    # All hidden, and shown again: no chart fails with nothing to draw.
    for _ in range(2):
        browser.evaluate("document.querySelectorAll('button').forEach(b => b.click())")
    series = browser.evaluate(SERIES)
    for key in CHARTS + [k for k in QUALITY if wanted(k)]:
        expect(sorted(series.get(key, [])) == sorted(wanted(key)), f"{key}: series are lost when all are hidden and shown")

    # The data can be had from the page.
    expect(json.loads(browser.evaluate("fetch(document.getElementById('download').href).then(r => r.text())")) == data,
           "the download is not the data")
    expect(browser.evaluate("document.getElementById('download').download") == "comparison.json", "no name to download")

    for where, panel in appearances(browser, 11, folder):
        button = browser.evaluate(
            "Math.min(...[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().height))")
        expect(button >= 36, f"{where}: a button is {button} high")
        colours = browser.evaluate("""Object.fromEntries([...document.querySelectorAll('#toggles .series')].map(
            s => [s.closest('button').dataset.mechanism, getComputedStyle(s.querySelector('.line')).stroke]))""")
        for mechanism, colour in colours.items():
            expect(contrast(colour, panel) >= 3, f"{where}: {mechanism} {colour} on {panel}")
        expect(len(set(colours.values())) == len(names), f"{where}: two mechanisms have one colour")


def quiet(browser):
    """Nothing went wrong, nothing was asked of the network."""
    for event in browser.events:
        method, params = event["method"], event.get("params", {})
        if method == "Runtime.exceptionThrown":
            expect(False, "exception: " + json.dumps(params["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            expect(False, "console: " + json.dumps(params["args"]))
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            expect(False, "log: " + params["entry"]["text"])
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            expect(url.startswith(("file:", "data:", "blob:")), "the page asks for " + url)


def main(arguments, use, doc):
    if len(arguments) not in (1, 2):
        print(doc, file=sys.stderr)
        return 2
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        print("no Chromium here: the page was not looked at (Debian: apt-get install chromium)")
        return NO_BROWSER
    page = pathlib.Path(arguments[0]).resolve()
    text = page.read_text(encoding="utf-8")
    begin = text.index(">", text.index('<script type="application/json"')) + 1
    data = json.loads(text[begin:text.index("</script>", begin)])
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        try:
            browser.look(1280, 900, False)
            browser.open(page.as_uri())
            use(browser, data, arguments[1] if len(arguments) > 1 else None)
            quiet(browser)
        finally:
            browser.close()
    print(f"{len(failed)} things are wrong" if failed else "the page holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], use, __doc__))
