"""The page in a real browser, before a real server: what a newcomer sees, clicks and types."""

import json
import os
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from frontends.openai_http.server import OpenAIServer
from frontends.openai_http.settings import HttpSettings
from tests.frontends.fake_service import ANSWER, FakeService
from tests.must_show.served import serving

pytestmark = [pytest.mark.browser, pytest.mark.demo]

PAGE = Path(__file__).parents[2] / "frontends" / "web" / "page"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 90_000  # milliseconds for what a busy machine may take long for
SENDS, STOPS, ANSWERED = "#send-button:visible", "#stop-button:visible", ".message.assistant .figures"
TALE = "Tell a very long story about a lighthouse, with many chapters."


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "there is no Chromium: apt-get install chromium, or say in CHROMIUM where it is"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def url():
    with serving("--model", "demo", "--enable-prefix-caching", "--max-num-seqs", "8") as server:
        yield server.url


@pytest.fixture
def opened(browser):
    """Opens pages of new visitors; what they are told on the console in vain fails the test."""
    contexts, told = [], []

    def open_page(address, *, expected=(), **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()

        def note(text):
            if not any(each in text for each in expected):
                told.append(text)

        page.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []


def ask(page, text):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def until(page, condition, patience=PATIENCE / 1000):
    """The driver's own waiting would evaluate text in the page, which its policy forbids."""
    deadline = time.monotonic() + patience
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never: {condition}"
        page.wait_for_timeout(50)


def live(url):
    with urllib.request.urlopen(f"{url}/dashboard/live", timeout=30) as answer:
        return json.load(answer)


def picture(page, name):
    """For the README, where ``nox -s web -- --screenshots`` asks for them."""
    if folder := os.environ.get("PAGE_PICTURES"):
        page.wait_for_timeout(400)  # transitions
        page.screenshot(path=Path(folder) / f"{name}.png")


# --- chat ---------------------------------------------------------------------------------------------------------------


def test_an_answer_streams_in(opened, url):
    page = opened(url)
    page.wait_for_selector("[data-state=up]")
    assert page.text_content("#model-name") == "demo"
    page.click("#options-button")
    page.fill("[name=max_tokens]", "120")
    page.click("#options-close")
    ask(page, "Write a short list of three reasons why small language models are useful, with a code example in Python.")
    page.wait_for_selector(STOPS)
    until(page, "document.querySelector('.answer').textContent.length > 5")
    early = page.inner_text(".answer")
    page.wait_for_selector(ANSWERED)
    whole = page.inner_text(".answer")
    assert len(whole) > len(early) > 0
    assert "tokens/s" in page.inner_text(ANSWERED)
    assert "li" in page.evaluate("[...document.querySelectorAll('.answer *')].map((each) => each.localName)")
    picture(page, "chat-light")
    page.reload()
    assert page.inner_text(".answer") == whole  # it is kept in the browser
    page.emulate_media(color_scheme="dark")
    picture(page, "chat-dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) != dark


def test_an_answer_can_be_stopped(opened, url):
    page = opened(url)
    ask(page, TALE)
    until(page, "document.querySelector('.answer').textContent.length > 20")
    page.click(STOPS)
    page.wait_for_selector(SENDS)
    assert page.inner_text(ANSWERED).endswith("stopped")
    told = len(page.inner_text(".answer"))
    until(page, "fetch('dashboard/live').then((each) => each.json()).then((each) => each.engine.num_running === 0)")
    assert live(url)["engine"]["requests_finished"]["abort"] >= 1
    assert len(page.inner_text(".answer")) == told


def test_a_question_is_changed_and_an_answer_made_again(opened, url):
    page = opened(url)
    page.click("#options-button")
    page.fill("[name=max_tokens]", "4")
    ask(page, "Say red.")
    page.wait_for_selector(ANSWERED)
    page.click("text=Regenerate")
    page.wait_for_selector(ANSWERED)
    page.hover(".message.user")
    page.click("text=Edit")
    page.fill(".said textarea", "Say blue.")
    page.press(".said textarea", "Enter")
    page.wait_for_selector(ANSWERED)
    assert page.locator(".message").count() == 2
    assert page.inner_text(".said") == "Say blue."
    assert page.inner_text(ANSWERED).startswith("4 tokens")
    page.click("#new-button")
    assert page.locator(".message").count() == 0


def test_each_token_shows_how_likely_it_was(opened, url):
    page = opened(url)
    page.click("#options-button")
    page.check("[name=logprobs]")
    page.fill("[name=max_tokens]", "60")
    ask(page, "Describe the sea at night in two sentences.")
    page.wait_for_selector(ANSWERED)
    assert page.locator(".token").count() > 10
    page.locator(".token").nth(3).hover()
    assert page.locator("#tip .tip-row").count() >= 5
    assert page.locator("#tip .tip-row.chosen").count() == 1
    picture(page, "probabilities")
    page.focus(".token")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[1]")
    page.click("text=Probabilities")
    assert page.locator(".token").count() == 0


def test_what_a_model_writes_is_not_run(opened, url):
    page = opened(url)
    attack = """**bold** <img src=x onerror='window.hit=1'><script>window.hit=1</script> [x](javascript:window.hit=1)
<svg onload='window.hit=1'></svg> <style>body{display:none}</style> [y](https://example.org) ![z](https://example.org/z.png)"""
    kept = [{"role": "user", "content": "<b>hi</b>"}, {"role": "assistant", "content": attack}]
    page.evaluate("(kept) => localStorage.setItem('dovetail.messages', kept)", json.dumps(kept))
    page.reload()
    assert page.inner_text(".said") == "<b>hi</b>"
    assert page.inner_text(".answer strong") == "bold"
    assert page.locator(".answer :is(img, script, svg, style)").count() == 0
    assert page.eval_on_selector_all(".answer a[href]", "links => links.map((each) => [each.href, each.rel])") == [
        ["https://example.org/", "noopener noreferrer nofollow"]
    ]
    assert "<script>window.hit=1</script>" in page.inner_text(".answer")  # shown as the text it is
    assert page.evaluate("window.hit") is None


def test_errors_are_told_in_the_servers_words(opened, url):
    page = opened(url, expected=["400"])
    page.click("#options-button")
    page.fill("[name=top_p]", "7")
    ask(page, "hi")
    assert page.inner_text(".failure p").lower().startswith("top_p must be ")
    page.fill("[name=top_p]", "")
    page.fill("[name=max_tokens]", "2")
    page.click("text=Try again")
    page.wait_for_selector(ANSWERED)
    assert page.locator(".failure").count() == 0


def test_a_key_is_asked_for_and_used(opened):
    service = FakeService()
    service.page = PAGE
    server = OpenAIServer(HttpSettings(port=0, api_key=("s3cret",)), drain_timeout=1)
    thread = threading.Thread(target=server.run, args=(service,))
    port = server._bound.getsockname()[1]
    thread.start()
    try:
        page = opened(f"http://127.0.0.1:{port}", expected=["401", "404"])
        assert page.inner_text("#key-reason").startswith("This server wants an API key")
        page.fill("#key-input", "wrong")
        page.press("#key-input", "Enter")
        until(page, "document.getElementById('key-reason').textContent.startsWith('The API key is not one')")
        page.fill("#key-input", "s3cret")
        page.press("#key-input", "Enter")
        page.wait_for_selector("[data-state=up]")
        ask(page, "Where is Paris?")
        page.wait_for_selector(ANSWERED)
        assert page.inner_text(".answer") == ANSWER
    finally:
        server.stop()
        thread.join(20)


# --- dashboard ----------------------------------------------------------------------------------------------------------


def test_the_dashboard_moves(opened, url):
    page = opened(url)
    ask(page, TALE)
    until(page, "document.querySelector('.answer').textContent.length > 20")
    page.click("text=Dashboard")
    until(page, "document.getElementById('live-requests').textContent === '1 running'")
    tokens = "parseInt(document.getElementById('live-speed-note').textContent.replaceAll(',', ''))"
    before = page.evaluate(tokens)
    until(page, f"{tokens} > {before + 10}")
    until(page, "parseFloat(document.getElementById('live-speed').textContent) > 0")
    assert page.locator(".map .cell.used").count() >= 1
    assert page.inner_text("#live-inter") != "–"
    for _ in range(6 if os.environ.get("PAGE_PICTURES") else 0):
        page.wait_for_timeout(1000)
    picture(page, "dashboard")
    assert page.locator(".plan tr", has_text="cache policy").inner_text().split("\t")[1:3] == ["prefix", "cache_prefix"]
    assert "--enable-prefix-caching" in page.locator(".plan tr", has_text="cache policy").inner_text()
    page.click("text=Chat")
    page.click(STOPS)
    page.wait_for_selector(SENDS)


# --- compatibility ------------------------------------------------------------------------------------------------------


def test_cuda_graphs_with_tensor_parallelism_are_refused(opened, url):
    page = opened(f"{url}#compatibility")
    page.wait_for_selector("#outcome.good")
    page.select_option("#machine", "H800 80G")
    page.check("input[name=count][value='2']")
    page.check("input[name=graph][value=cuda]")
    until(page, "document.getElementById('command').textContent.includes('--graph cuda')")
    page.fill("input[data-key='tensor_parallel.size']", "2")
    page.wait_for_selector("#outcome.bad")
    rule = page.locator(".problem", has_text="cuda-graphs-with-tensor-parallel")
    assert "Graphs are recorded for one CUDA device, and 2 ranks share the model." in rule.inner_text()
    assert "--graph, --tensor-parallel-size" in rule.inner_text()
    assert page.inner_text("#command").endswith("--graph cuda --tensor-parallel-size 2")
    assert page.locator(".chip.culprit[data-key=graph]").count() == 1
    assert "graph=cuda" in page.url
    page.wait_for_selector(".form:not([data-stale]) .chip.conflicts")
    picture(page, "compatibility")
    rule.get_by_role("button", name="Do this: --tensor-parallel-size 1").click()
    page.wait_for_selector("#outcome.good")
    assert page.inner_text("#command").endswith("--graph cuda")


def test_what_would_conflict_is_marked_before_it_is_ticked(opened, url):
    page = opened(f"{url}#compatibility")
    page.wait_for_selector(".chip.conflicts[data-key=graph][data-choice=cuda]")
    assert page.inner_text("[data-key=graph][data-choice=cuda] .mark") == "✕ cuda-graphs-need-cuda"
    assert page.locator(".chip.conflicts[data-key=graph][data-choice=eager]").count() == 0


# --- everybody ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["chat", "dashboard", "compatibility"])
def test_nothing_is_wider_than_a_phone(opened, url, view):
    page = opened(f"{url}#{view}", viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page.wait_for_selector({"chat": ".suggestions", "dashboard": ".plan tbody tr", "compatibility": "#outcome"}[view])
    width = "[document.documentElement.scrollWidth, ...[...document.querySelectorAll('.view')].map((each) => each.scrollWidth)]"
    assert max(page.evaluate(width)) <= 360
    if view == "chat":
        page.fill("#prompt", "Write a haiku about snow.")
        page.click(SENDS)
        page.wait_for_selector(ANSWERED)
        assert max(page.evaluate(width)) <= 360
    picture(page, f"phone-{view}")


def test_everything_can_be_reached_by_keys(opened, url):
    page = opened(url)
    page.wait_for_selector("[data-state=up]")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type("Say hi.")
    page.keyboard.press("Enter")
    page.wait_for_selector(STOPS)
    page.keyboard.press("Escape")
    page.wait_for_selector(SENDS)
    page.keyboard.press("Alt+2")
    page.wait_for_selector("#view-dashboard:visible")
    page.keyboard.press("Alt+3")
    page.wait_for_selector("#outcome")
    assert page.title() == "Compatibility · Dovetail"


def test_the_order_of_the_tab_key(opened, url):
    page = opened(f"{url}#compatibility")
    page.wait_for_selector("#outcome")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(({ id, name, className }) => id || name || className)(document.activeElement)"))
    assert reached[:2] == ["skip", "brand"]
    assert [each for each in reached if each in ("theme-button", "machine", "count")] == ["theme-button", "machine", "count"]


def test_every_control_has_a_name(opened, url):
    page = opened(url)
    page.click("#options-button")
    unnamed = """[...document.querySelectorAll("button, input, textarea, select, a")].filter((each) => each.checkVisibility()
        && !(each.ariaLabel || each.textContent.trim() || each.labels?.length)).map((each) => each.outerHTML)"""
    for view in ("chat", "dashboard", "compatibility"):
        page.goto(f"{url}#{view}")
        page.wait_for_selector({"chat": "#prompt", "dashboard": ".plan tbody tr", "compatibility": "#outcome"}[view])
        assert page.evaluate(unnamed) == []
