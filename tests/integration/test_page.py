"""The page in a real browser, over the real app, on a root filled through the real store."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from unified.job_state import JobState

pytest.importorskip("selenium", reason="the page is tested in a browser, which takes selenium")

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.integration.demo_jobs import HOSTILE, HOSTILE_TEXT, JOBS, Demo, job_id
from tests.integration.demo_queue import DemoQueue
from tests.integration.page_server import CHROMIUM, DRIVER, browsing, resize, serving
from tests.integration.page_steps import NAMED, button, complaints, eventually, find, open_panel, row, rows, text, visit
from unified.service.http_auth import Tokens, make_token

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Chrome]:
    with browsing(downloads=downloads) as driver:
        yield driver


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[DemoQueue]:
    with contextlib.closing(DemoQueue(tmp_path / "root")) as queue:
        yield queue


@pytest.fixture
def address(queue: DemoQueue) -> Iterator[str]:
    queue.fill((*JOBS, HOSTILE))
    with serving(queue.root.path) as address:
        yield address


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Chrome]:
    """The page with its table filled; nothing may have gone wrong in it by the end."""
    visit(browser, address)
    eventually(lambda: len(rows(browser)) == len(JOBS) + 1)
    yield browser
    assert complaints(browser) == []


def test_the_table_shows_every_job_with_its_state_reason_owner_and_numbers(page: Chrome) -> None:
    shown = {name: row(page, name).text for name in NAMED}
    for demo in JOBS:
        assert f"{demo.state}" in shown[demo.name]
        assert demo.user in shown[demo.name]
    assert "1830 / 3910" in shown["resnet18-cifar"]
    assert "412 MiB" in shown["resnet18-cifar"]
    assert "2 jobs before it" in shown["tabular-7"]
    assert "retry in" in shown["wgan"]


def test_the_slots_show_who_trains_and_who_is_parked(page: Chrome) -> None:
    first = eventually(lambda: page.find_elements(By.CSS_SELECTOR, "#slots .slot"))[0].text
    assert re.search(r"resnet18-cifar\s+training", first)
    assert re.search(r"mlp-mnist\s+parked", first)
    assert "of 4.0 GiB" in first
    assert find(page, "#slots .memory-bar").find_elements(By.CSS_SELECTOR, "span")


def test_what_users_name_their_jobs_stays_text(page: Chrome) -> None:
    assert HOSTILE_TEXT in rows(page)
    find(page, f'#jobs tr[data-id="{job_id(HOSTILE)}"]').click()
    eventually(lambda: text(page, "#panel-title") == HOSTILE_TEXT)
    assert HOSTILE_TEXT in text(page, ".panel .reason")
    assert "<script>" in text(page, ".panel .spec")
    assert page.find_elements(By.CSS_SELECTOR, "body img, body script, td b") == []
    assert page.title.endswith("unified")


def test_finding_and_choosing_states_and_owners_narrow_the_table(page: Chrome) -> None:
    find(page, "body").send_keys("/")
    page.switch_to.active_element.send_keys("ada lenet")
    eventually(lambda: rows(page) == ["lenet-b", "lenet-a"])
    assert "2 of 17 jobs" in text(page, "#count")
    page.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    page.switch_to.active_element.send_keys(Keys.BACKSPACE)
    find(page, '#groups input[value="paused"]').send_keys(Keys.SPACE)
    eventually(lambda: rows(page) == ["autoencoder"])
    find(page, '#groups input[value="live"]').send_keys(Keys.SPACE)
    eventually(lambda: len(rows(page)) == 6)
    find(page, "#owner").send_keys("chen", Keys.ENTER)
    eventually(lambda: rows(page) == ["vit-tiny", "mlp-mnist"])
    find(page, '#groups input[value="failed"]').send_keys(Keys.SPACE)
    eventually(lambda: text(page, "#jobs-empty") == "No job here matches.")


def test_columns_sort_both_ways_with_the_unknown_last(page: Chrome) -> None:
    loss = find(page, "th.col-loss button")
    loss.click()
    ascending = rows(page)
    assert find(page, "th.col-loss").get_attribute("aria-sort") == "ascending"
    loss.click()
    assert rows(page)[0] == "diverged"
    known = [demo.name for demo in JOBS if demo.steps]
    assert set(ascending[: len(known)]) == set(rows(page)[: len(known)]) == set(known)
    Select(find(page, "#order")).select_by_value("oldest")
    loss.click()
    eventually(lambda: rows(page)[0] == "lenet-a")


def test_a_panel_opens_by_click_and_by_keyboard_and_gives_the_focus_back(page: Chrome) -> None:
    open_panel(page, "lenet-a")
    find(page, "body").send_keys(Keys.ESCAPE)
    eventually(lambda: not find(page, "#panel").is_displayed())
    link = row(page, "lenet-b").find_element(By.CSS_SELECTOR, ".job-link")
    link.send_keys(Keys.ARROW_DOWN)
    assert page.switch_to.active_element.text == "lenet-a"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    eventually(lambda: text(page, "#panel-title") == "lenet-a")
    assert page.switch_to.active_element.get_attribute("id") == "panel-title"
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    eventually(lambda: page.switch_to.active_element.text == "lenet-a")


def test_a_panel_tells_the_whole_story_of_a_job(page: Chrome) -> None:
    open_panel(page, "autoencoder")
    history = eventually(lambda: text(page, ".panel .history"))
    for state in ("queued", "loading", "running", "pausing", "paused"):
        assert state in history
    eventually(lambda: page.find_elements(By.CSS_SELECTOR, ".panel .line path"))
    assert "step 400" in text(page, ".panel .checkpoints")
    assert '"epochs": 10' in text(page, ".panel .spec")
    assert not find(page, ".panel [aria-label=Result]").is_displayed()


def test_the_address_of_a_panel_can_be_shared(browser: Chrome, address: str) -> None:
    visit(browser, f"{address}/#/jobs/{job_id(NAMED['wgan'])}")
    eventually(lambda: text(browser, "#panel-title") == "wgan")
    browser.execute_script("location.hash = '#/jobs/no-such-job'")
    eventually(lambda: "There is no job no-such-job" in text(browser, ".panel .problem"))


def test_the_log_is_followed_to_its_end(page: Chrome, queue: DemoQueue) -> None:
    open_panel(page, "tabular-7")
    eventually(lambda: "accepted" in text(page, ".panel .log"))
    queue.log(job_id(NAMED["tabular-7"]), "a line <b>written</b> later")
    eventually(lambda: "a line <b>written</b> later" in text(page, ".panel .log"))
    open_panel(page, "lenet-a")
    eventually(lambda: "end of the log" in text(page, ".panel .log + .hint"))
    assert "a line" not in text(page, ".panel .log")


def test_a_pause_is_asked_for_and_shown(page: Chrome, queue: DemoQueue) -> None:
    open_panel(page, "tabular-7")
    button(page, "pause").click()
    eventually(lambda: "paused" in text(page, ".panel .outcome.good"))
    assert queue.store.get(job_id(NAMED["tabular-7"])).state is JobState.PAUSED
    eventually(lambda: "paused" in row(page, "tabular-7").text)
    eventually(lambda: button(page, "resume").is_enabled())
    assert not button(page, "pause").is_enabled()


def test_a_refusal_is_shown_with_the_servers_words(browser: Chrome, address: str) -> None:
    visit(browser, address)
    eventually(lambda: rows(browser))
    open_panel(browser, "lenet-a")
    # As from a page that has not heard yet that the job has finished.
    browser.execute_script("arguments[0].disabled = false; arguments[0].click()", button(browser, "pause"))
    refusal = eventually(lambda: text(browser, ".panel .outcome.bad"))
    assert "Pause: refused" in refusal
    assert "finished" in refusal
    assert all("409" in each for each in complaints(browser))


def test_cancelling_asks_first(page: Chrome, queue: DemoQueue) -> None:
    open_panel(page, "bert-probe")
    button(page, "cancel").click()
    assert "bert-probe" in find(page, "#confirm-title").text
    find(page, '#confirm-dialog button[value="no"]').click()
    assert queue.store.get(job_id(NAMED["bert-probe"])).state is JobState.QUEUED
    button(page, "cancel").click()
    find(page, "#confirm-yes").click()
    eventually(lambda: queue.store.get(job_id(NAMED["bert-probe"])).state is JobState.CANCELLED)
    eventually(lambda: "cancelled" in row(page, "bert-probe").text)


def test_a_requeue_may_begin_from_scratch(page: Chrome, queue: DemoQueue) -> None:
    open_panel(page, "sweep-03")
    button(page, "requeue").click()
    find(page, "#confirm-option input").click()
    find(page, "#confirm-yes").click()
    eventually(lambda: text(page, ".panel .outcome.good"))
    again = queue.store.get(job_id(NAMED["sweep-03"]))
    assert (again.state, again.steps_done) == (JobState.QUEUED, 0)


def test_a_result_is_downloaded(page: Chrome, downloads: Path) -> None:
    open_panel(page, "lenet-a")
    eventually(lambda: "model.safetensors" in text(page, ".panel .files"))
    page.find_element(By.LINK_TEXT, "model.safetensors").click()
    eventually(lambda: (downloads / "model.safetensors").is_file())
    assert (downloads / "model.safetensors").stat().st_size == 177_000


def test_curves_are_drawn_for_the_jobs_that_train_and_for_those_ticked(page: Chrome) -> None:
    eventually(lambda: page.find_elements(By.CSS_SELECTOR, "#curves .line path"))
    legend = text(page, "#curves .legend")
    assert "resnet18-cifar" in legend
    assert "lenet-a" not in legend
    row(page, "lenet-a").find_element(By.CSS_SELECTOR, "input").click()
    eventually(lambda: "lenet-a" in text(page, "#curves .legend"))
    linear = find(page, "#curves .line path").get_attribute("d")
    find(page, "#curves-tools .log-scale").click()
    eventually(lambda: find(page, "#curves .line path").get_attribute("d") != linear)
    Select(find(page, "#curves-tools select")).select_by_visible_text("accuracy")
    assert page.find_elements(By.CSS_SELECTOR, '#curves svg[aria-label^="accuracy of"]')
    find(page, "#curves svg").send_keys(Keys.ARROW_LEFT)
    assert "resnet18-cifar train" in text(page, "#curves .readout")


def test_the_timeline_shows_both_slots(page: Chrome) -> None:
    eventually(lambda: len(page.find_elements(By.CSS_SELECTOR, "#timeline .turns")) >= 5)
    assert "jobs took turns" in text(page, "#timeline-hint")
    assert len(page.find_elements(By.CSS_SELECTOR, "#timeline .lane")) == 2


def test_without_a_supervisor_the_page_says_that_jobs_wait(browser: Chrome, queue: DemoQueue) -> None:
    queue.tell(JOBS[-2:])
    with serving(queue.root.path) as address:
        visit(browser, address)
        eventually(lambda: "no supervisor is running: jobs wait" in text(browser, "#health").lower())
        eventually(lambda: "tabular-7" in rows(browser))
        assert "supervisor not running" in row(browser, "tabular-7").text
        assert complaints(browser) == []


def test_an_empty_queue_says_how_to_fill_it(browser: Chrome, queue: DemoQueue) -> None:
    queue.serve(())
    with serving(queue.root.path) as address:
        visit(browser, address)
        eventually(lambda: "No jobs yet" in text(browser, "#jobs-empty"))
        assert complaints(browser) == []


def test_pages_of_a_long_queue_are_turned(browser: Chrome, queue: DemoQueue) -> None:
    many = [Demo(name=f"job-{i:03}", user="ada", state=JobState.QUEUED, reason="waits", submitted=500 - i) for i in range(230)]
    queue.tell(many)
    with serving(queue.root.path) as address:
        visit(browser, address)
        eventually(lambda: rows(browser)[:1] == ["job-229"])
        find(browser, "#more").click()
        eventually(lambda: rows(browser)[:1] == ["job-129"])
        find(browser, "#more").click()
        eventually(lambda: rows(browser) == [f"job-{i:03}" for i in range(29, -1, -1)])
        assert not find(browser, "#more").is_enabled()
        find(browser, "#back").click()
        eventually(lambda: rows(browser)[:1] == ["job-129"])
        Select(find(browser, "#order")).select_by_value("oldest")
        eventually(lambda: rows(browser)[:1] == ["job-000"])


def test_a_server_that_goes_away_is_missed_and_found_again(browser: Chrome, queue: DemoQueue) -> None:
    queue.fill()
    with serving(queue.root.path) as address:
        visit(browser, address)
        eventually(lambda: rows(browser))
    eventually(lambda: re.search(r"Cannot reach the server since \d\d:\d\d", text(browser, "#notices")))
    assert rows(browser), "what was known is still shown"
    with serving(queue.root.path, port=int(address.rpartition(":")[2])):
        browser.execute_script("document.querySelector('#notices button').click()")
        eventually(lambda: not text(browser, "#notices"))


def test_a_token_is_asked_for_and_shows_its_owners_jobs_alone(
    browser: Chrome, queue: DemoQueue, tmp_path: Path, downloads: Path
) -> None:
    queue.fill()
    token, line = make_token("ada", ["read", "submit"])
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{line}\n")
    with serving(queue.root.path, tokens=Tokens(tokens)) as address:
        visit(browser, address)
        eventually(lambda: find(browser, "#token").is_displayed())
        find(browser, "#token").send_keys("wrong", Keys.ENTER)
        eventually(lambda: "does not know this token" in text(browser, "#token-problem"))
        find(browser, "#token").send_keys(token, Keys.ENTER)
        eventually(lambda: rows(browser) == [demo.name for demo in reversed(JOBS) if demo.user == "ada"])
        assert text(browser, "#who") == "ada"
        assert not find(browser, "#owner").is_displayed()
        open_panel(browser, "lenet-b")
        eventually(lambda: "accepted" in text(browser, ".panel .log"))
        eventually(lambda: browser.find_elements(By.LINK_TEXT, "state_dict.pt"))[0].click()
        eventually(lambda: (downloads / "state_dict.pt").is_file())
        assert browser.execute_script("return localStorage.length") == 0
        assert token not in browser.current_url
        assert all("401" in each for each in complaints(browser))


@pytest.mark.parametrize("width", [360, 760, 1100])
@pytest.mark.parametrize("name", [None, "resnet18-cifar"])
def test_nothing_is_wider_than_a_narrow_window(page: Chrome, width: int, name: str | None) -> None:
    eventually(lambda: page.find_elements(By.CSS_SELECTOR, "#curves .line path"))
    if name:
        open_panel(page, name)
    resize(page, width, 800)
    assert eventually(lambda: page.execute_script("return document.scrollingElement.scrollWidth")) <= width


def test_numbers_read_as_people_write_them(page: Chrome) -> None:
    written = {
        "bytes(0)": "0 B",
        "bytes(1536)": "1.5 KiB",
        "bytes(1024 ** 3 - 1)": "1.0 GiB",
        "bytes(null)": "–",
        "number(0.312449)": "0.3124",
        "number(1.2e-7)": "1.20e-7",
        "number(null)": "–",
        "duration(9.97)": "10 s",
        "duration(59.97)": "1 min 00 s",
        "duration(3725)": "1 h 02 min",
        "plural(1, 'job')": "1 job",
    }
    calls = ", ".join(f"m.{call}" for call in written)
    script = f"const done = arguments[0]; import('/static/format.js').then((m) => done([{calls}]))"
    assert dict(zip(written, page.execute_async_script(script), strict=True)) == written
