"""The page over a made-up queue, to look at: ``python -m tests.integration.page_server`` serves it,
``--screenshot FILE`` takes a picture of it with the system's Chromium."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.integration.demo_jobs import JOBS, job_id
from tests.integration.demo_queue import DemoQueue
from unified.service.http_app import make_app
from unified.service.http_auth import Tokens

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE_SECONDS = 60
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-proxy-server",
)  # fmt: skip


@contextlib.contextmanager
def serving(root: Path, *, tokens: Tokens | None = None, port: int = 0) -> Iterator[str]:
    """Serve a root's page and API on this machine while the context lasts; gives the address."""
    app = make_app(root, tokens=tokens)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=5))
    app.state.context.is_stopping = lambda: server.should_exit  # so that followed logs end too
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)


@contextlib.contextmanager
def living(queue: DemoQueue) -> Iterator[None]:
    """Let the queue's story go on, a second per second, while the context lasts."""
    is_over = threading.Event()

    def live() -> None:
        while not is_over.wait(1.0):
            queue.advance(max(0.1, time.time() - queue.now))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def browsing(*, width: int = 1400, height: int = 1000, downloads: Path | None = None) -> Iterator[webdriver.Chrome]:
    """A browser with nothing in it while the context lasts."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if downloads is not None:
            options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            resize(driver, width, height)
            yield driver
        finally:
            driver.quit()


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    """Give the page itself this size, whatever the window needs around it."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(driver: webdriver.Chrome, scheme: str) -> None:
    """Prefer ``"light"`` or ``"dark"``."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


def photograph(address: str, options: argparse.Namespace) -> None:
    """Write a picture of the page, or of the page with one job's panel."""
    with browsing(width=options.width, height=options.height) as driver:
        prefer(driver, "dark" if options.dark else "light")
        driver.get(f"{address}/#/jobs/{options.job}" if options.job else address)
        WebDriverWait(driver, PATIENCE_SECONDS).until(lambda page: page.find_elements(By.CSS_SELECTOR, ".line path"))
        time.sleep(options.seconds)
        options.screenshot.write_bytes(driver.get_screenshot_as_png())
        for entry in driver.get_log("browser"):
            print(entry["message"], file=sys.stderr)


def main() -> int:
    """Serve, or take a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screenshot", type=Path, help="write a PNG here and end")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30, help="let the queue live for so long before the picture is taken")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--job", default="", help="name of a job whose panel is open")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    options.job = next((job_id(demo) for demo in JOBS if demo.name == options.job), options.job)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(DemoQueue(Path(folder) / "root")) as queue:
        queue.fill()
        with serving(queue.root.path, port=options.port) as address, living(queue):
            if options.screenshot:
                photograph(address, options)
            else:
                print(address, flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
