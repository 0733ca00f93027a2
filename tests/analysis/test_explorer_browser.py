"""The explorer in a browser: what a change shows, that nothing is fetched, how soon, and on a narrow screen."""

import json
import shutil
import time

import pytest

from jaxinfer.analysis import hardware
from jaxinfer.analysis.explorer import page
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.formats import kv_storage, weight_storage
from jaxinfer.checkpoint.presets import SHAPES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu")
ARGUMENTS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
MODELS = {
    name: SHAPES[name] for name in ("llama-3-8b", "llama-2-70b", "gemma3-4b", "deepseek-v3", "falcon-7b", "opt-1.3b")
}
H100 = hardware.get("h100-sxm")
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("explorer") / "explorer.html"
    page(models=MODELS).write(file)
    return file.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, address):
    """Open the page with a link's state; it has to stay silent, and to itself."""
    context, requests, faults = browser.new_context(viewport=WIDE), [], []

    def open_with(link="", viewport=WIDE):
        tab = context.new_page()
        tab.set_viewport_size(viewport)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        tab.goto(f"{address}#{link}")
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield open_with
    context.close()
    assert faults == []
    assert {url.partition("#")[0] for url in requests if not url.startswith("data:")} == {address}


def card(tab, label):
    return (
        tab.locator("#cards > div", has=tab.get_by_text(label, exact=True))
        .locator("dd")
        .evaluate("dd => dd.firstChild.textContent")
    )


def milliseconds(text):
    value, unit = text.split()
    return float(value.replace(",", "")) * {"s": 1e3, "ms": 1, "µs": 1e-3}[unit]


def close(value):
    return pytest.approx(value, rel=6e-3)  # three digits are shown


def test_a_change_shows_what_the_analyzer_says(opened):
    tab = opened("model=llama-3-8b&batch=4")
    setting = Setting(batch=4, prompt=2048, generate=256, flash=True)
    wanted = analyze(MODELS["llama-3-8b"], H100, setting)
    assert milliseconds(card(tab, "Time a step")) == close(1e3 * wanted.seconds("decode"))
    tab.get_by_label("Batch, rows", exact=True).fill("32")
    tab.get_by_label("Weights", exact=True).select_option("int4")
    tab.get_by_label("Keys and values", exact=True).select_option("int8")
    tab.get_by_label("Model", exact=True).select_option("llama-2-70b")
    tab.get_by_label("Device", exact=True).select_option("h200")
    tab.get_by_label("Tensor", exact=True).fill("8")
    setting = setting.replace(batch=32, weights=weight_storage("int4"), kv=kv_storage("int8"), tensor=8)
    wanted = analyze(MODELS["llama-2-70b"], hardware.get("h200"), setting)
    assert milliseconds(card(tab, "Time a step")) == close(1e3 * wanted.seconds("decode"))
    assert card(tab, "Largest batch") == f"{wanted.largest_batch():,}"
    assert card(tab, "Longest prompt") == f"{wanted.longest_prompt():,}"
    assert float(card(tab, "Memory a device").split()[0]) == close(wanted.peak_memory["total"] / 1e9)
    shown = tab.locator("#operators tbody tr").evaluate_all("rows => rows.map((row) => row.cells[0].textContent)")
    assert shown == [one.operator.name for one in wanted.stages["decode"]]
    tab.get_by_text("Whole", exact=True).click()
    assert milliseconds(card(tab, "Time")) == close(1e3 * wanted.generation["seconds"])
    tab.get_by_text("Prefill", exact=True).click()
    assert milliseconds(card(tab, "Time to first token")) == close(1e3 * wanted.seconds("prefill"))


def test_a_link_opens_as_it_was_left_and_two_settings_stand_side_by_side(opened):
    tab = opened("model=llama-3-8b")
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_label("Weights", exact=True).select_option("int4")
    seconds = [milliseconds(x) for x in tab.locator("#comparison tbody tr").first.locator("td").all_text_contents()[:2]]
    setting = Setting(batch=1, prompt=2048, generate=256, flash=True)
    for found, weights in zip(seconds, ("bfloat16", "int4"), strict=True):
        wanted = analyze(MODELS["llama-3-8b"], H100, setting.replace(weights=weight_storage(weights)))
        assert found == close(1e3 * wanted.seconds("decode"))
    link = tab.evaluate("location.hash.slice(1)")
    assert link == "compare=1&b.weights=int4"
    again = opened(link)
    assert again.locator("#comparison").inner_text() == tab.locator("#comparison").inner_text()
    again.evaluate("location.hash = 'batch=7'")  # another link into the same page
    again.wait_for_function("document.querySelector('#c-batch').value === '7'")
    assert again.locator("#comparison").is_hidden()


def test_an_operator_is_looked_at_by_pointer_and_by_keys(opened):
    tab = opened("model=llama-3-8b")
    tab.locator("#network button", has_text="down_proj").click()
    assert tab.locator("#detail h2").inner_text().startswith("down_proj")
    assert "117 MB" in tab.locator("#detail").inner_text()  # 14336 x 4096 weights of two bytes
    point = tab.locator("#roofline circle[data-operator='2']")
    point.focus()
    assert "memory-bound" in tab.locator("#tip").inner_text()
    tab.keyboard.press("Enter")
    assert tab.locator("#detail h2").inner_text().startswith("q_proj")
    assert tab.evaluate("document.activeElement.dataset.operator") == "2"
    tab.get_by_role("button", name="All layers").click()
    shares = tab.locator("#operators tbody tr td:last-child").all_text_contents()
    numbers = [float(text.replace("<", "").split()[0]) for text in shares]
    assert numbers == sorted(numbers, reverse=True)


def test_a_wrong_value_is_one_line_beside_the_last_figures(opened):
    tab = opened("model=llama-3-8b")
    before = tab.locator("#summary").inner_text()
    tab.get_by_label("Tensor", exact=True).fill("3")
    assert tab.get_by_role("alert").inner_text() == "Tensor 3 does not divide 32 heads"
    assert tab.get_by_label("Tensor", exact=True).get_attribute("aria-invalid") == "true"
    assert tab.locator("#summary").inner_text() == before
    tab.get_by_label("Tensor", exact=True).fill("4")
    assert tab.get_by_role("alert").is_hidden()


@pytest.mark.parametrize("stage", ["decode", "generation"])
def test_a_change_on_80_layers_shows_within_200_ms(opened, stage):
    tab = opened(f"model=llama-2-70b&stage={stage}&generate=4000")
    change = """batch => {
      const input = document.querySelector("#c-batch"), began = performance.now();
      input.value = batch;
      input.dispatchEvent(new Event("input", { bubbles: true }));
      document.body.getBoundingClientRect();  // the browser has laid it out
      return performance.now() - began;
    }"""
    times = []
    while len(times) < 40 and min(times, default=1e3) >= 200:  # the machine may be busy with other tests
        times.append(tab.evaluate(change, len(times) % 7 + 2))
        time.sleep(0.05)
    assert min(times) < 200, times


@pytest.mark.parametrize("model", MODELS)
def test_a_narrow_screen_shows_all_models_without_scrolling_sideways(opened, model):
    tab = opened(f"model={model}&stage=generation&compare=1&b.batch=64", NARROW)
    assert tab.get_by_role("alert").is_hidden()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.locator("#settings > summary").click()
    assert tab.get_by_label("Batch, rows", exact=True).is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    outside = """() => [...document.querySelectorAll("main *:not(.scroll *)")]
      .filter((one) => one.getBoundingClientRect().right > 391).map((one) => one.outerHTML.slice(0, 90))"""
    assert tab.evaluate(outside) == []


def test_a_notebook_shows_the_page_in_a_frame(browser, tmp_path):
    tab, faults = browser.new_page(), []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    (tmp_path / "notebook.html").write_text(page(models=MODELS)._repr_html_(), encoding="utf-8")
    tab.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.frame_locator("iframe")
    before = frame.locator("#summary").inner_text()
    frame.get_by_label("Batch, rows", exact=True).fill("64")
    assert frame.locator("#summary").inner_text() != before
    tab.close()
    assert faults == []


def test_every_control_has_a_name(opened):
    tab = opened()
    unnamed = """() => [...document.querySelectorAll("input, select")]
      .filter((one) => !one.labels?.length && !one.getAttribute("aria-label")).map((one) => one.outerHTML)"""
    assert json.dumps(tab.evaluate(unnamed)) == "[]"
