"""A page opened in headless Chromium: what is in it then, what its console says, and which addresses were asked for."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=10000",
    "--dump-dom",
)
# Runs a probe when every chart is drawn, and leaves what it returns in the document.
HARNESS = """<script>
addEventListener("load", async () => {
  const waiting = () => [...document.querySelectorAll(".chart")].some(chart => !chart.querySelector("svg"));
  while (waiting()) await new Promise(done => setTimeout(done, 20));
  const found = await (async () => { %s })();
  const note = document.createElement("pre");
  note.id = "probe";
  note.textContent = JSON.stringify(found ?? null);
  document.body.append(note);
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """What became of a page."""

    dom: str
    console: list[str]
    requests: list[str]
    probe: object


def chromium() -> str:
    """The browser's path; where there is none, a skip, or a failure where CI is set."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no Chromium to open a page in")
    return found


def look(html: str, folder, *flags: str, probe: str = "") -> Seen:
    """Open a page and run the body of a JavaScript function in it when its charts are drawn."""
    page, log = folder / "page.html", folder / "net.json"
    head, end, tail = html.rpartition("</body>")
    page.write_text(head + HARNESS % probe + end + tail, encoding="utf-8")
    command = [
        chromium(),
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    note = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert note, f"the page did not come to rest:\n{done.stderr[-3000:]}"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line and '"WARN ' not in line]
    return Seen(done.stdout, console, _requests(log), json.loads(unescape(note[1])))


def _requests(log) -> list[str]:
    """Addresses that the page asked for, in the browser's log; what the browser wants for itself has no origin."""
    params = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    asked = {param["url"] for param in params if param.get("initiator", "not an origin") != "not an origin"}
    return sorted(address for address in asked if not address.startswith(("file:", "data:", "blob:")))
