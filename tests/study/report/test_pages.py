"""The HTML report and the MLflow UI, looked at in a real browser."""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient
from selenium.webdriver import Chrome
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from deepfake.transforms.corruptions import SUITE
from tests.support.browser import (
    chromium,
    console_errors,
    needs_browser,
    prefer_scheme,
    requested_urls,
    resize,
)
from tests.support.runs import Folder
from tests.support.small_study import SLOTS

pytestmark = [pytest.mark.slow, needs_browser]

LOAD_S = 60
A4_PX = 710  # 210 mm less the page's margins
SECTIONS = ["answer", "study", "slices", "pruning-timeline", "trials", "curves", "confusion"]
SECTIONS += ["failures", "corruptions", "data", "proofs", "origin", "reproduce"]
LOOK = """
document.querySelectorAll('details').forEach(d => d.open = true);
const all = (selector, of) => [...document.querySelectorAll(selector)].map(of);
const named = e => e.alt || e.getAttribute('aria-label');
return {
  sections: all('main > section', s => s.id),
  links: all('nav a', a => a.hash.slice(1)),
  lang: document.documentElement.lang,
  levels: all('h1, h2, h3, h4, h5', h => Number(h.tagName[1])),
  unscoped: all('th:not([scope])', h => h.textContent),
  silent: all('img, .figure, .scroll', e => named(e) ? '' : e.outerHTML).filter(Boolean),
  unreached: all('.scroll', e => e.tabIndex ? e.outerHTML : '').filter(Boolean),
};
"""


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(shared_browser: Chrome) -> Chrome:
    """On an empty page, of a desktop's size, in the light, with empty logs."""
    shared_browser.get("about:blank")
    resize(shared_browser, 1280)
    prefer_scheme(shared_browser, "light")
    requested_urls(shared_browser)
    console_errors(shared_browser)
    return shared_browser


@pytest.fixture(scope="module")
def report_url(small_study: Folder, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    done = small_study.call("report", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 10_000_000
    return out.as_uri()


@pytest.fixture(scope="module")
def ui_url(small_study: Folder) -> Iterator[str]:
    """The running MLflow UI; it and the children it starts end with the module."""
    server = subprocess.Popen(
        small_study.command("ui", "--port", "0"),
        cwd=small_study.path,
        env={**small_study.env, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a group of its own: its children can be ended with it
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/#/experiments/\d+/runs\S*", said)
        assert found, said
        yield found[0]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
        with contextlib.suppress(ProcessLookupError):  # children that outlived it
            os.killpg(server.pid, signal.SIGKILL)


def wait_for(driver: Chrome, script: str) -> None:
    WebDriverWait(driver, LOAD_S).until(lambda d: d.execute_script(f"return {script}"))


def open_page(driver: Chrome, url: str, script: str) -> None:
    """Open url and wait until script is true on it."""
    driver.get(url)
    wait_for(driver, script)


def open_report(driver: Chrome, url: str) -> None:
    open_page(driver, url, "document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")


class TestReport:
    def test_is_quiet_and_asks_nothing_of_the_network(self, browser: Chrome, report_url: str):
        open_report(browser, report_url)
        prefer_scheme(browser, "dark")
        browser.execute_script("document.querySelector('[data-pick=all]').click()")
        browser.execute_cdp_cmd("Page.printToPDF", {})
        asked = [u for u in requested_urls(browser) if not u.startswith(("data:", "blob:"))]
        assert asked == [report_url]
        assert console_errors(browser) == []

    def test_has_every_section_in_order_and_can_be_read_aloud(
        self, browser: Chrome, report_url: str
    ):
        open_report(browser, report_url)
        found = browser.execute_script(LOOK)
        assert found["sections"] == found["links"] == SECTIONS
        assert found["lang"] == "en"
        assert found["levels"][:3] == [1, 2, 3]
        deeper = [b for a, b in itertools.pairwise(found["levels"]) if b > a + 1]
        assert not deeper, "a heading skips a level"
        assert not found["unscoped"], "table heads without a scope"
        assert not found["silent"], "pictures, figures or scroll boxes without a name"
        assert not found["unreached"], "scroll boxes that no key reaches"

    def test_shows_faces_of_train_and_val_and_how_to_make_it_again(
        self, browser: Chrome, report_url: str
    ):
        open_report(browser, report_url)
        sheets = browser.execute_script(
            "return [...document.querySelectorAll('#data .sheet')].map(s => [s.dataset.split,"
            " s.dataset.label, [...s.querySelectorAll('img')].filter(i => i.naturalWidth).length])"
        )
        parts = [(split, label) for split in ("train", "val") for label in ("real", "fake")]
        assert [(split, label) for split, label, _ in sheets] == parts
        assert all(0 < faces <= 12 for _, _, faces in sheets)
        said = browser.find_element(By.ID, "commands").text.splitlines()
        programs = [line.split()[1] for line in said if line.startswith("deepfake-study")]
        assert programs == ["prepare", "run", "evaluate", "report"]

    def test_follows_the_scheme_while_it_is_open_and_prints_in_the_light(
        self, browser: Chrome, report_url: str
    ):
        open_report(browser, report_url)
        ink = "getComputedStyle(document.querySelector('#history .xtick text')).fill"
        light = browser.execute_script(f"return {ink}")
        prefer_scheme(browser, "dark")
        wait_for(browser, f"{ink} !== '{light}'")
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert browser.execute_script(f"return {ink}") == light
        folded = "return document.querySelectorAll('details:not(.long, [open])').length"
        assert browser.execute_script(folded) == 0
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        assert browser.execute_script(f"return {ink}") != light
        assert browser.execute_script(folded) > 0

    def test_fits_a_printed_page(self, browser: Chrome, report_url: str):
        resize(browser, A4_PX)
        open_report(browser, report_url)
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        try:
            over = browser.execute_script(
                "return [...document.querySelectorAll('main *')].filter(e => "
                f"e.getClientRects().length && e.getBoundingClientRect().right > {A4_PX} + 1)"
                ".map(e => [e.tagName, e.id, e.className, e.getBoundingClientRect().right])"
            )
            assert over == []
            hidden = "return ['nav', '.pick'].map(s => document.querySelector(s).offsetHeight)"
            assert browser.execute_script(hidden) == [0, 0]
            paper = "return getComputedStyle(document.body).backgroundColor"
            assert browser.execute_script(paper) == "rgb(255, 255, 255)"
        finally:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

    def test_draws_every_figure(self, browser: Chrome, report_url: str):
        open_report(browser, report_url)
        places = browser.find_elements(By.CLASS_NAME, "figure")
        ids = {place.get_attribute("id") for place in places}
        slices = {"slice-lr", "slice-weight_decay", "slice-dropout", "slice-variant"}
        kinds = {corruption.kind for corruption in SUITE.values()}
        falls = {f"corruptions-{kind}" for kind in kinds}
        tested = {"roc", "precision-recall", "reliability-before", "reliability-after"}
        tested |= {"standing", "differences"}
        searched = {"history", "parallel", "curves-loss", "curves-accuracy", "sizes"}
        assert ids - {"incumbents", "pruning"} == searched | slices | falls | tested
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('.figure')].map(f => "
            "[f.querySelectorAll('.main-svg .point').length, f.scrollHeight, f.clientHeight])"
        )
        assert all(points > 0 and inside <= height for points, inside, height in drawn), drawn
        assert len(browser.find_elements(By.CLASS_NAME, "matrix")) >= 2 * 3

    @pytest.mark.parametrize("width", [320, 390, 768, 1280])
    def test_never_scrolls_sideways(self, browser: Chrome, report_url: str, width: int):
        resize(browser, width)
        open_report(browser, report_url)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide == width
        svg = "Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.clientWidth))"
        wait_for(browser, f"{svg} <= {width}")

    def test_compares_as_the_command_does(
        self, browser: Chrome, report_url: str, small_study: Folder
    ):
        open_report(browser, report_url)
        expected = small_study.json("compare")["rows"]
        rows = browser.find_elements(By.CSS_SELECTOR, "#comparison tbody tr")
        assert len(rows) == len(expected) == 6
        for row, want in zip(rows, expected, strict=True):
            assert row.get_attribute("data-model") == want["model"]
            assert row.get_attribute("data-source") == want["source"]
            cells = row.find_elements(By.CSS_SELECTOR, "[data-figure]")
            shown = {c.get_attribute("data-figure"): c.text.split("\n")[0] for c in cells}
            assert shown == {name: f"{want['metrics'][name]:.2f}" for name in shown}
            assert len(shown) == 7

    def test_says_first_who_is_better_and_every_figure_with_its_interval(
        self, browser: Chrome, report_url: str, small_study: Folder
    ):
        open_report(browser, report_url)
        found = small_study.json("compare")["analysis"]
        said = [li.text for li in browser.find_elements(By.CSS_SELECTOR, "#answer .verdicts li")]
        assert len(said) == len(found["comparisons"]) == 3
        for line, comparison in zip(said, found["comparisons"], strict=True):
            assert line.lower().split("\n")[0] == comparison["verdict"] == "too few seeds"
            assert comparison["sentence"][1:] in line
        models = [model for model in found["models"] if model["role"] != "diagnostic"]
        assert len(models) == 4
        for model in models:
            cells = browser.find_elements(
                By.CSS_SELECTOR, f"#models [data-model='{model['model']}']"
            )
            assert len(cells) == 10
            nll = model["figures"]["nll"]
            words = [f"{nll['value']:.3f}", f"{nll['low']:.3f} to {nll['high']:.3f}"]
            assert cells[5].text.split("\n") == words  # one seed: no deviation
            assert cells[9].text == "—"  # under 500 real faces
        marks = browser.find_elements(By.CSS_SELECTOR, "#comparison [data-verdict=inconclusive]")
        assert len(marks) == 14  # one seed has no interval

    def test_shows_where_the_best_fails(
        self, browser: Chrome, report_url: str, small_study: Folder
    ):
        open_report(browser, report_url)
        found = small_study.json("compare")
        best = found["analysis"]["best"]
        rows = browser.find_elements(By.CSS_SELECTOR, "#error-slices tbody tr:not(.by)")
        assert len(rows) == len(found["analysis"]["slices"])
        for row, part in zip(rows, found["analysis"]["slices"], strict=True):
            first = row.find_element(By.CLASS_NAME, "best").text.split("\n")[0]
            assert first == f"{100 * part['error_rate'][best]['value']:.1f}"
        (row,) = (row for row in found["rows"] if row["source"] == "best")
        wrong = {"real_as_fake": row["confusion"][0][1], "fake_as_real": row["confusion"][1][0]}
        for kind, errors in wrong.items():
            place = f".gallery[data-model='{best}'][data-kind={kind}] img"
            pictures = browser.find_elements(By.CSS_SELECTOR, place)
            assert len(pictures) == min(24, errors)
        decoded = "return [...document.querySelectorAll('.gallery img')].map(i => i.naturalWidth)"
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        widths = browser.execute_script(decoded)
        assert widths
        assert all(0 < width <= 96 for width in widths)
        texts = "return [...document.querySelectorAll('.gallery img')].every(i => i.alt)"
        assert browser.execute_script(texts)

    def test_picks_curves_by_slot(self, browser: Chrome, report_url: str):
        open_report(browser, report_url)
        count = "new Set(document.getElementById('curves-loss').data.map(t => t.meta.slot)).size"
        complete = len(browser.find_elements(By.CSS_SELECTOR, "#trials tr.complete"))
        first = len(browser.find_elements(By.CSS_SELECTOR, ".pick [data-first]"))
        assert browser.execute_script(f"return {count}") == first
        for pick, shown in (("all", SLOTS), ("none", 0), ("top", complete), ("first", first)):
            browser.find_element(By.CSS_SELECTOR, f"[data-pick={pick}]").click()
            wait_for(browser, f"{count} === {shown}")

    def test_a_click_on_a_slot_draws_its_curves(self, browser: Chrome, report_url: str):
        open_report(browser, report_url)
        slots = "[...new Set(document.getElementById('curves-loss').data.map(t => t.meta.slot))]"
        browser.execute_script("document.querySelector('[data-pick=none]').click()")
        link = browser.find_element(By.CSS_SELECTOR, "#trials [data-slot='3']")
        link.send_keys(Keys.ENTER)  # as from the keyboard
        wait_for(browser, f"{slots}.join() === '3'")
        assert browser.execute_script("return location.hash") == "#curves"
        point = "document.querySelector('#history .scatterlayer .trace:last-of-type .point')"
        clicked = browser.execute_script(
            "const trace = document.getElementById('history').data.findLast(t => t.customdata);"
            f"{point}.scrollIntoView({{block: 'center'}}); return trace.customdata[0]"
        )
        box = browser.execute_script(
            f"const b = {point}.getBoundingClientRect(); return [b.x, b.y]"
        )
        builder = ActionBuilder(browser)
        builder.pointer_action.move_to_location(int(box[0]) + 4, int(box[1]) + 4).click()
        builder.perform()
        wanted = ",".join(str(slot) for slot in sorted({3, clicked}))
        wait_for(browser, f"{slots}.join() === '{wanted}'")

    def test_sorts_the_trials(self, browser: Chrome, report_url: str):
        open_report(browser, report_url)
        button = browser.find_element(By.XPATH, "//button[text()='val loss']")
        cells = (
            "return [...document.querySelectorAll('.sortable tbody tr')]"
            ".map(r => Number(r.cells[7].dataset.value))"
        )
        for descending in (False, True):
            browser.execute_script("arguments[0].click()", button)
            losses = browser.execute_script(cells)
            assert losses == sorted(losses, reverse=descending)
            assert len(losses) == SLOTS


class TestMlflowUi:
    def test_lists_one_run_a_slot_the_best_first(
        self, browser: Chrome, ui_url: str, small_study: Folder
    ) -> None:
        open_runs(browser, ui_url)
        names = {"baseline cnn", "baseline mobilenet_v2_frozen"}
        links = browser.find_elements(By.CSS_SELECTOR, "a[href*='/runs/']")
        shown = {link.get_attribute("textContent") for link in links}
        assert names <= shown, shown
        page = browser.find_element(By.TAG_NAME, "body").text
        assert "best_val_loss" in page
        client = MlflowClient(tracking_uri=f"sqlite:///{small_study.path}/mlruns/mlflow.db")
        experiment = client.get_experiment_by_name("small")
        assert experiment is not None
        runs = client.search_runs(
            [experiment.experiment_id],
            "tags.slot != ''",
            order_by=["metrics.best_val_loss ASC"],
        )
        listed = sorted(links, key=lambda link: link.location["y"])
        addresses = [str(link.get_attribute("href")).rpartition("/")[2] for link in listed]
        assert addresses == [run.info.run_id for run in runs]
        assert len(runs) == SLOTS

    def test_shows_a_run_with_metrics_and_artifacts(self, browser: Chrome, ui_url: str) -> None:
        open_runs(browser, ui_url)
        run = browser.find_element(By.PARTIAL_LINK_TEXT, "baseline cnn").get_attribute("href")
        browser.get(str(run))
        for text in ("best_val_loss", "test_auc", "weight_decay"):
            wait_for(browser, f"document.body.innerText.includes('{text}')")
        browser.get(f"{run}/artifacts")
        for text in ("learning_curves.png", "config.yaml", "weights"):
            wait_for(browser, f"document.body.innerText.includes('{text}')")
        browser.get(f"{run}/system-metrics")
        wait_for(browser, "document.body.innerText.includes('cpu_utilization')")

    def test_describes_the_study_on_its_own_page(
        self, browser: Chrome, ui_url: str, small_study: Folder
    ) -> None:
        client = MlflowClient(tracking_uri=f"sqlite:///{small_study.path}/mlruns/mlflow.db")
        experiment = client.get_experiment_by_name("small")
        assert experiment is not None
        (parent,) = client.search_runs([experiment.experiment_id], "tags.role = 'study'")
        browser.get(f"{ui_url.partition('/runs')[0]}/runs/{parent.info.run_id}")
        for text in ("Best trial: slot", "too few seeds to tell slot", "Train_poly/train"):
            wait_for(browser, f"document.body.innerText.includes('{text}')")


def open_runs(driver: Chrome, url: str) -> None:
    """The study's runs, at the address that the command prints."""
    open_page(driver, url, "document.body.innerText.includes('baseline cnn')")


def test_the_ui_ends_with_its_command_and_leaves_no_server(small_study: Folder) -> None:
    ui = subprocess.Popen(
        small_study.command("ui", "--port", "0"),
        cwd=small_study.path,
        env={**small_study.env, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert ui.stdout is not None
    found = re.search(r"127\.0\.0\.1:(\d+)", ui.stdout.readline())
    assert found
    port = int(found[1])
    with socket.create_connection(("127.0.0.1", port)) as unfinished:
        head = f"POST /api/2.0/mlflow/experiments/search HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        unfinished.sendall(f"{head}Content-Length: 99\r\n\r\n".encode())
        time.sleep(1)
        ui.send_signal(signal.SIGTERM)  # to it alone
        assert ui.wait(30) == 128 + signal.SIGTERM
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
