"""What a reader of the page does and sees, for its tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.integration.demo_jobs import JOBS, job_id
from tests.integration.page_server import PATIENCE_SECONDS, prefer, resize

NAMED = {demo.name: demo for demo in JOBS}


def visit(browser: Chrome, address: str) -> None:
    """Open an address in a browser that knows nothing of the tests before."""
    resize(browser, 1400, 1000)
    prefer(browser, "light")
    browser.get("about:blank")  # each test has a port, so an origin and a storage, of its own
    browser.get_log("browser")
    browser.get(address)


def complaints(browser: Chrome) -> list[str]:
    """What the browser has logged: errors of scripts, missing files, breaches of the policy."""
    return [entry["message"] for entry in browser.get_log("browser")]


def eventually(true: Callable[[], Any]) -> Any:
    """Wait until ``true()`` is; a row that is replaced while it is read is read again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(StaleElementReferenceException):
            if answer := true():
                return answer
        time.sleep(0.05)
    pytest.fail(f"did not happen within {PATIENCE_SECONDS} s")


def rows(browser: Chrome) -> list[str]:
    """The names in the table, in order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#jobs tbody .job-link')].map((link) => link.textContent)"
    )


def find(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def text(browser: Chrome, selector: str) -> str:
    """The text of the first such element, hidden or not; empty if there is none."""
    return browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def row(browser: Chrome, name: str) -> WebElement:
    return find(browser, f'#jobs tr[data-id="{job_id(NAMED[name])}"]')


def open_panel(browser: Chrome, name: str) -> None:
    row(browser, name).click()
    eventually(lambda: text(browser, "#panel-title") == name and text(browser, ".panel .state"))


def button(browser: Chrome, verb: str) -> WebElement:
    return find(browser, f'.panel [data-verb="{verb}"]')
