"""Makes the README's picture of the explorer, from the run that made its results figure."""

import tempfile
from pathlib import Path

from tests.browser.jupyter import ROOT, chromium, jupyter_server, write_notebook

RUN = ROOT / "output" / "demo"


def main() -> None:
    """Writes docs/explorer.png: the true positive with the highest score."""
    code = f"from chexnet.explorer import explore\nexplore({str(RUN)!r})"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        write_notebook(home / "one.ipynb", code)
        with jupyter_server(home, Path(folder)) as server, chromium() as browser:
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(f"{server.url}voila/render/one.ipynb?token={server.token}", timeout=180_000)
            panel = page.locator(".chexnet-explorer")
            panel.locator(".image-id").wait_for(timeout=180_000)
            panel.get_by_role("button", name="true positives").click()
            panel.locator(".position", has_text="true positive").wait_for()
            page.wait_for_timeout(500)  # the canvases are drawn after the words
            panel.screenshot(path=ROOT / "docs" / "explorer.png")


if __name__ == "__main__":
    main()
