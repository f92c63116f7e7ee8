"""A headless Chromium for tests that look at pages."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
needs_browser = pytest.mark.skipif(
    shutil.which("chromedriver") is None or not any(map(shutil.which, BROWSERS)),
    reason="needs Chromium and chromedriver (apt-get install chromium chromium-driver)",
)


@contextmanager
def chromium(profile_dir: Path, width: int = 1280, height: int = 900) -> Iterator[Chrome]:
    """A browser of its own profile, ended with the block. It keeps console and network logs."""
    options = ChromeOptions()
    options.binary_location = str(next(filter(None, map(shutil.which, BROWSERS))))
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "disable-quic",
        "no-first-run",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={profile_dir}",
        f"window-size={width},{height}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ["SE_AVOID_STATS"] = "true"  # selenium reports its use otherwise
    os.environ["no_proxy"] = "127.0.0.1,localhost"
    driver = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.get("about:blank")
        requested_urls(driver)  # those of the new-tab page
        yield driver
    finally:
        driver.quit()


def resize(driver: Chrome, width: int, height: int = 900) -> None:
    """The page's own size, px; a window can't be as narrow as a phone."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def prefer_scheme(driver: Chrome, scheme: str) -> None:
    """scheme: light or dark."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def console_errors(driver: Chrome) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requested_urls(driver: Chrome) -> list[str]:
    """Every URL that the page asked for since this was last called."""
    events: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
    ]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
