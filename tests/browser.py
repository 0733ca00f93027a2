"""A real browser for tests of pages: headless Chromium by playwright; tests that ask for it skip where there is none.

A test file imports both fixtures: `from browser import browser, page  # noqa: F401`.
"""

import shutil
from types import SimpleNamespace

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """One browser for the tests of a module."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on PATH")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    """A fresh page. `page.seen` has what it asked for (`requests`) and what went wrong (`errors`)."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.seen = SimpleNamespace(requests=[], errors=[])
    opened.on("request", lambda request: opened.seen.requests.append(request.url))
    opened.on("pageerror", lambda error: opened.seen.errors.append(str(error)))
    opened.on("console", lambda line: line.type == "error" and opened.seen.errors.append(line.text))
    yield opened
    opened.close()
