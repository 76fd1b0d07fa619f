"""The report page in a real browser: it fits, obeys the colour scheme, and asks for nothing."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rft.stages import report
from tests.synthetic import HOSTILE, build

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)
WIDTHS = (1440, 1280, 800, 390, 320)
AXE = Path(
    os.environ.get("RFT_AXE")
    or Path(__file__).parents[2] / "build/axe/node_modules/axe-core/axe.min.js"
)
"""npm install --prefix build/axe axe-core"""

OVERHANGING = """
    return [...document.querySelectorAll('main *')].filter(e => {
        if (e.closest('.scroll') && !e.matches('.scroll')) return false;
        if (e.closest('.clip, .mark')) return false;
        const box = e.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
    }).map(e => e.outerHTML.slice(0, 120))"""
"""Elements that reach past the window, but for what scrolls or is cut within its own box."""

CONTRASTS = """
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    function paint(...colours) {
        canvas.clearRect(0, 0, 1, 1);
        for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => {
            v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
    const found = {};
    for (const e of document.querySelectorAll('main *')) {
        const words = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!words || !e.getClientRects().length) continue;
        const style = getComputedStyle(e), under = [];
        for (let up = e; up; up = up.parentElement)
            under.unshift(getComputedStyle(up).backgroundColor);
        const ink = e instanceof SVGElement ? style.fill : style.color;
        const a = paint('white', ...under, ink), b = paint('white', ...under);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const name = e.tagName + '.' + (e.getAttribute('class') || '');
        found[name] = Math.min(found[name] ?? 99, ratio);
    }
    return found"""
"""Lowest contrast of text with what lies under it (WCAG 2.2), by element and class."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of many arms, seeds and hostile texts."""
    arms = ("base", "sft", "sft_matched", "random", "rft")
    job = build(
        tmp_path_factory.mktemp("page"), arms, (0, 1), 80, eval_n=4, k=(1, 2, 4), resamples=200,
        seen=40,
    )  # fmt: skip
    prices = {"watts": 65, "price_per_kwh": 0.3, "price_per_hour": 0.5}
    job["config"]["compare"]["cost"] |= prices
    report.run([job])
    return Path(job["folder"]) / "report.html"


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.chrome.service.Service(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def show(browser: Any, page: Path, width: int, scheme: str, unfold: bool = True) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    if unfold:
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("unfold", [False, True], ids=["folded", "unfolded"])
def test_nothing_overflows(browser: Any, page: Path, width: int, unfold: bool) -> None:
    show(browser, page, width, "light", unfold)
    wide, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert window == width
    assert wide <= window
    assert browser.execute_script(OVERHANGING) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_scheme_is_obeyed_and_text_is_readable(browser: Any, page: Path, scheme: str) -> None:
    show(browser, page, 1280, scheme)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    channels = [int(c) for c in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (min(channels) > 200) if scheme == "light" else (max(channels) < 60)
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 25
    # 4.5 to 1 is WCAG's level AA for text of this size.
    assert {name: c for name, c in contrasts.items() if c < 4.5} == {}


@pytest.mark.skipif(not AXE.is_file(), reason="npm install --prefix build/axe axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_serious(browser: Any, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width, scheme)
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run(document).then(done, e => done({fault: String(e)}))"
    )
    assert "fault" not in found
    assert len(found["passes"]) > 15, "it has looked"
    serious = {
        v["id"]: [node["html"][:160] for node in v["nodes"][:3]]
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    }
    assert serious == {}


def test_every_section_is_there_and_has_one_heading(browser: Any, page: Path) -> None:
    show(browser, page, 1440, "light")
    for key in ("claims", "confounds", "slices", "diversity", "cost", "examples"):
        heads = browser.find_elements("css selector", f"#{key} > h2")
        assert len(heads) == 1 and heads[0].is_displayed(), key
    kinds = {e.text for e in browser.find_elements("css selector", "#examples summary .mark")}
    assert kinds == {"better", "worse", "wrong"}


def test_nothing_is_asked_for_and_nothing_complained_of(browser: Any, page: Path) -> None:
    browser.get("about:blank")
    for log in ("performance", "browser"):
        browser.get_log(log)  # what came before is not this page's
    show(browser, page, 1280, "light")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked, "the log must have seen the page itself"
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []
    assert browser.get_log("browser") == []


def test_hostile_text_is_seen_and_does_nothing(browser: Any, page: Path) -> None:
    show(browser, page, 390, "light")
    assert browser.title == "synthetic <b>run</b>: report"
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, "script, img, iframe, main b b, pre *, summary h1") == 0
    assert browser.execute_script(count, "h1") == 1
    seen = browser.execute_script("return document.body.innerText")
    for text in HOSTILE[:3]:
        assert text in seen


def test_examples_unfold_by_keyboard(browser: Any, page: Path) -> None:
    show(browser, page, 1280, "light", unfold=False)
    first = browser.find_element("css selector", "#examples details")
    assert first.get_attribute("open") is None
    first.find_element("css selector", "summary").send_keys("\ue007")
    assert first.get_attribute("open") == "true"
    assert first.find_element("css selector", "pre").is_displayed()
