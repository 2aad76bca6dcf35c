"""The HTML report in a real browser, where there is one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report import made

from lipcert.gate import Outcome, compare
from lipcert.report import comparison, html_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt install chromium")

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
    # The browser's own questions stay here too.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
GATES = [
    Outcome("certified accuracy at eps 0.3", "fail", "598/1000 = 59.80 % < 60 %"),
    Outcome("clean accuracy", "pass", "950/1000 = 95.00 % ≥ 90 %"),
]

# Reads the page in a frame of a given width: what is wider than it, and what is not drawn.
FRAME = """<!doctype html><iframe id=f width=%d height=900 src="%s"></iframe><script>
document.getElementById("f").onload = () => {
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  const images = [...page.images].filter(image => !image.naturalWidth).length;
  const texts = [...page.querySelectorAll("svg text")].map(t => t.getBoundingClientRect());
  document.title = JSON.stringify({
    wide: root.scrollWidth - root.clientWidth, images, pictures: page.images.length,
    smallest: Math.min(...texts.map(box => Math.min(box.height, box.width * 3))),
    outside: texts.filter(box => box.left < 0 || box.right > root.clientWidth).length,
  });
};
</script>"""


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    profile = page.parent / f"profile-{len(list(page.parent.iterdir()))}"
    run = subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(page.parent)},
        check=False,
    )
    shutil.rmtree(profile, ignore_errors=True)
    assert run.returncode == 0, run.stderr
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    rows = made.samples(100)
    certificate = made.certificate(rows)
    texts = {
        "full": html_page.render(made.full(), GATES),
        "estimate": html_page.render(made.estimated()),
        "large": html_page.render(made.full(10_000)),
        "comparison": comparison.as_html(compare(certificate, certificate, rows, rows)),
    }
    made_pages = {name: folder / f"{name}.html" for name in texts}
    for name, text in texts.items():
        made_pages[name].write_text(text, encoding="utf-8")
    return made_pages


def screenshot(page: Path, width: int, *options: str) -> np.ndarray:
    """The first 1400 pixels of the page; kept where LIPCERT_TEST_SHOTS names a folder."""
    target = page.with_suffix(f".{width}{'.dark' if options else ''}.png")
    chromium(page, f"--window-size={width},1400", f"--screenshot={target}", *options)
    if folder := os.environ.get("LIPCERT_TEST_SHOTS"):
        shutil.copy(target, folder)
    shown = np.asarray(Image.open(target).convert("RGB"), dtype=float)
    assert shown.shape == (1400, width, 3)
    return shown


def requests(log: Path) -> list[str]:
    """What pages asked for, not the browser itself."""
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return [
        one["url"]
        for one in asked
        if one.get("initiator", "not an origin") != "not an origin"
        and not one["url"].startswith(("file:", "data:"))
    ]


NET = ("--dump-dom", "--virtual-time-budget=3000")


@pytest.mark.parametrize("name", ["full", "large", "comparison"])
def test_the_console_is_silent_and_no_request_leaves_the_file(pages, tmp_path, name):
    log = tmp_path / "net.json"
    run = chromium(pages[name], f"--log-net-log={log}", *NET)
    assert "</main>" in run.stdout
    assert "CONSOLE" not in run.stderr
    assert requests(log) == []


def test_the_check_of_the_console_and_of_requests_finds_them(tmp_path):
    page, log = tmp_path / "bad.html", tmp_path / "net.json"
    page.write_text(
        "<!doctype html><title>x</title><script>console.error('wrong')</script>"
        "<img src='http://127.0.0.1:9/picture.png'>"
    )
    run = chromium(page, f"--log-net-log={log}", *NET)
    assert "CONSOLE" in run.stderr
    assert requests(log) == ["http://127.0.0.1:9/picture.png"]


@pytest.mark.parametrize("width", [1280, 400])
def test_everything_fits_the_width_and_can_be_read(pages, tmp_path, width):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % (width, pages["full"].as_uri()))
    run = chromium(
        frame, "--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=5000"
    )
    found = json.loads(run.stdout.split("<title>")[1].split("</title>")[0])
    assert found["wide"] <= 0
    assert found["outside"] == 0
    assert found["images"] == 0
    assert found["pictures"] == 40
    assert found["smallest"] >= 9


@pytest.mark.parametrize(("name", "width"), [("full", 1280), ("full", 400), ("estimate", 400)])
def test_light_and_dark_look_like_it(pages, name, width):
    light, dark = screenshot(pages[name], width), screenshot(pages[name], width, DARK)
    assert np.median(light) > 230
    assert np.median(dark) < 40
    for shown in (light, dark):
        # Something is drawn from top to bottom, and in colour.
        rows = (np.abs(shown - np.median(shown, axis=(0, 1))).max(axis=2) > 60).any(axis=1)
        assert all(part.any() for part in np.array_split(rows, 10))
        assert (shown.max(axis=2) - shown.min(axis=2) > 60).mean() > 0.003
