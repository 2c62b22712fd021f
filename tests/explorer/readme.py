"""Take the README's screenshots of the sample run: `make demo`, then python -m tests.explorer.readme."""

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.explorer.browser import launch
from tests.explorer.serving import ROOT, Server

SIZE = {"width": 1280, "height": 800}
CHIP = "worldcover:2021:128:"
FIELDS = "&".join(
    [*(f"like={CHIP}{at}" for at in ("x1014560:y0540160", "x1014560:y0541440", "x1015840:y0540160")),
     f"dislike={CHIP}x1013280:y0540160", "dataset=worldcover"]
)  # fmt: skip
PICTURES = {
    "explorer.png": (FIELDS, "light"),
    "explorer-colours.png": (f"like={CHIP}x1014560:y0560640&dataset=worldcover&layer=colours", "dark"),
}


def main() -> None:
    """Serve the sample's database and write docs/*.png."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as scratch, sync_playwright() as driver:
        server, browser = (
            Server(ROOT, Path(scratch), "results/sample/explorer", "--pictures", "config/config.yaml"),
            launch(driver),
        )
        try:
            for name, (fragment, scheme) in PICTURES.items():
                page = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce").new_page()
                page.set_default_timeout(60_000)
                page.goto(f"{server.address}#{fragment}")
                page.wait_for_selector("body[data-map=drawn]")
                page.wait_for_function("() => document.querySelectorAll('#grid img').length >= 8")
                page.wait_for_timeout(2000)
                page.screenshot(path=ROOT / "docs" / name)
                page.context.close()
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main()
