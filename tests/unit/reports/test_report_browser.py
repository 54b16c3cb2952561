"""The page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from synthetic_run import write_run
from synthetic_trouble import add_trouble

from tunesmith.reports.render import write_report

pytestmark = pytest.mark.browser
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
PROBE = "<script>document.title = 'wide'</script>"
# A frame, since a headless window is never narrower than 500 pixels.
FRAME = """<!doctype html><title>none</title><iframe id="page" width="{width}" height="900" style="border: 0"></iframe><script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const page = frame.contentDocument;
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const cut = [...page.querySelectorAll(".wide")].filter(one => one.scrollWidth > one.clientWidth);
  const names = cut.map(one => one.closest("section").id + " " + one.querySelector("table").className);
  document.title = "wide " + page.documentElement.scrollWidth + " of " + frame.contentWindow.innerWidth + ", cut: " + names.join(", ") + ".";
}};
frame.srcdoc = {source};
</script>"""


def _open(path, profile, *options):
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", f"--user-data-dir={profile}"),
        *("--dump-dom", *options, path.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def _complaints(stderr):
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("needs Chromium, which is not installed here")
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "helpdesk"))


def test_the_console_stays_empty(page, tmp_path):
    done = _open(page, tmp_path / "profile")
    assert _complaints(done.stderr) == []
    assert "What was forgotten" in done.stdout


def test_the_policy_stops_a_script_and_this_test_would_see_it(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{PROBE}</main>"), encoding="utf-8")
    done = _open(broken, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in _complaints(done.stderr))
    assert "<title>wide" not in done.stdout


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("num_labels", [15, 30])
def test_nothing_is_cut_and_the_page_does_not_scroll_sideways(tmp_path, width, num_labels):
    if BROWSER is None:
        pytest.skip("needs Chromium, which is not installed here")
    run = add_trouble(write_run(tmp_path / "helpdesk", num_labels=num_labels))
    text = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", write_report(run).read_text(encoding="utf-8")
    )
    outer = tmp_path / "outer.html"
    source = json.dumps(text).replace("</", "<\\/")
    outer.write_text(FRAME.format(width=width, source=source), encoding="utf-8")
    found = re.search(r"<title>wide (\d+) of (\d+), cut: ([^.]*)\.", _open(outer, tmp_path / "profile").stdout)
    assert found is not None
    assert width - 20 <= int(found[2]) <= width
    assert int(found[1]) <= int(found[2])
    assert found[3] == ""
