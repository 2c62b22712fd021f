"""The explorer's page in a browser, with the actions of the tests."""

import re
from pathlib import Path

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
DESK, PHONE = (1360, 820), (375, 740)
EXPECTED = re.compile(r"net::ERR_|status of 4\d\d|GPU stall|GL Driver")  # messages of the browser itself


class Page:
    """An open page and the actions of the tests. `faults` has script errors and requests to other servers."""

    def __init__(self, browser, served, folder, size=DESK, **options):
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, accept_downloads=True, reduced_motion="reduce", **options
        )
        self.page, self.served, self.folder, self.faults = self.context.new_page(), served, folder, []
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on(
            "console",
            lambda m: m.type in ("error", "warning") and not EXPECTED.search(m.text) and self.faults.append(m.text),
        )
        self.page.on(
            "request",
            lambda r: r.url.startswith((served.address, "blob:", "data:")) or self.faults.append(f"request to {r.url}"),
        )

    def open(self, fragment=""):
        self.page.goto(f"{self.served.address}#{fragment}" if fragment else self.served.address)
        self.page.wait_for_selector("body[data-map=drawn]")
        return self

    def ranked(self):
        """Wait for the answer to the last search; return the chip ids in their order."""
        self.page.wait_for_selector("#grid[aria-busy=false]")
        return self.ids("#grid")

    def ids(self, selector):
        return self.page.eval_on_selector_all(f"{selector} [data-chip]", "all => all.map(e => e.dataset.chip)")

    def text(self, selector):
        return self.page.inner_text(selector)

    def search(self, body):
        """Return the server's results for this search."""
        return self.page.request.post(f"{self.served.address}api/search", data=body).json()["results"]

    def shown(self):
        """Wait until the visible pictures are loaded."""
        self.page.wait_for_function(
            """() => [...document.querySelectorAll('.picture')].filter(e => {
                 const b = e.getBoundingClientRect();
                 return b.width && b.bottom > 0 && b.top < innerHeight;
               }).every(e => e.dataset.from && (!e.querySelector('img') || e.querySelector('img').complete))"""
        )

    def shot(self, name, **options):
        self.shown()
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=str(self.folder / f"{name}.png"), **options)
        return self

    def accessible(self):
        """Assert that axe finds no violation and that nothing is wider than the screen."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
        findings = [f"{v['id']}: {n['html'][:150]} {n['failureSummary']}" for v in found for n in v["nodes"]]
        assert not findings, "\n".join(findings)
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def click_map(self, lon, lat):
        at = self.page.evaluate(f"(() => {{ const p = kiln.map.project([{lon}, {lat}]); return [p.x, p.y]; }})()")
        box = self.page.locator("#map").bounding_box()
        self.page.mouse.move(box["x"] + at[0], box["y"] + at[1])
        self.page.mouse.click(box["x"] + at[0], box["y"] + at[1])

    def mark(self, n, kind):
        self.page.locator("#grid li").nth(n).locator(f".mark.{kind}").click()
