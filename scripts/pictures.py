#!/usr/bin/env python3
"""The README's pictures, of a finished study: scripts/pictures.py CONFIG [OUT_DIR].

Needs Chromium and chromedriver. OUT_DIR: .readme without it. Run it with the venv's Python.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' browser

from tests.support.browser import chromium, prefer_scheme, resize

COMMAND = Path(sys.executable).with_name("deepfake-study")
REPORT_PX, UI_PX = (1280, 1000), (1440, 760)
LOAD_S = 60
HIDES = ("Close", "Hide banner", "Toggle sidebar")  # buttons of what hides the UI's list


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="of a study that was evaluated")
    parser.add_argument("out_dir", nargs="?", type=Path, default=Path(".readme"))
    arguments = parser.parse_args()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, chromium(Path(name, "profile")) as driver:
        prefer_scheme(driver, "light")
        report = Path(name, "report.html")
        subprocess.run([COMMAND, "report", arguments.config, "--out", report], check=True)
        open_page(driver, report.as_uri(), REPORT_PX, "Against the report")
        driver.save_screenshot(str(arguments.out_dir / "report.png"))
        with ui(arguments.config) as url:
            open_page(driver, url, UI_PX, "baseline")
            driver.save_screenshot(str(arguments.out_dir / "mlflow.png"))


def open_page(driver: Chrome, url: str, size: tuple[int, int], text: str) -> None:
    """Until it shows text, and nothing that hides it."""
    resize(driver, *size)
    driver.get(url)
    there = f"return document.body.innerText.includes({text!r})"
    WebDriverWait(driver, LOAD_S).until(lambda d: d.execute_script(there))
    for label in HIDES:
        for button in driver.find_elements(By.CSS_SELECTOR, f"button[aria-label='{label}']"):
            button.click()
    time.sleep(2)  # figures settle


@contextmanager
def ui(config: str) -> Iterator[str]:
    """The address of the study's list of runs in an MLflow UI that ends with the block."""
    server = subprocess.Popen(
        [COMMAND, "ui", config, "--port", "0"],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # its children end with it
    )
    try:
        assert server.stdout is not None
        yield re.findall(r"http://\S+", server.stdout.readline())[0]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
