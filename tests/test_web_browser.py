"""The page in a real browser: the whole story, wide and narrow, light and dark, in two languages.

It wants Chromium (Debian's package). With SCREENSHOTS=docs the demo model draws, and the pictures in the documentation
are made anew; else grey cards are enough.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from harness import FakeClock, drop_job, make_root
from laid_pictures import WEBUI, lay
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from tests_support import HERE, drain, run_sdbatch

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.service.service import Service

CHROMIUM = shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here: apt-get install chromium")

AXE = (HERE / "browser" / "axe.min.js").read_text()
SIZES = {"desktop": (1200, 850), "phone": (390, 844)}
SECONDS = 120_000  # for a job to be drawn, in milliseconds: the machine may be busy
expect.set_options(timeout=SECONDS)  # five seconds, unless said, are few on a machine that has other work
IS_DRAWN = "SCREENSHOTS" in os.environ
STEPS = "1000" if IS_DRAWN else "100"  # the demo model has no hold, and must not be done before the page has shown it
DRAWING = os.environ | {"SDBATCH_ENGINE": "local" if IS_DRAWN else "fake-process"}
BEFORE = [
    "a red apple on a blue background",
    "a yellow banana on a white background",
    "a blue car on a white background",
    "a frog on a green background",
    "a cat on a purple background",
]


@dataclass
class Site:
    """A root with the demo model, its service and its page."""

    root: Path
    address: str


def job(prompt: str, seed: int = 1) -> str:
    return f'prompt: "{prompt}"\nH: 64\nW: 64\nddim_steps: 20\nn_iter: 1\nn_samples: 3\nseed: {seed}\n'


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sdbatch", *map(str, arguments)]
    return subprocess.Popen(command, text=True, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a few pictures drawn, and a job that failed."""
    root = tmp_path_factory.mktemp("browser") / "demo"
    assert run_sdbatch("init", root, "--demo").returncode == 0
    inbox = root / "jobs" / "inbox"
    for number, prompt in enumerate(BEFORE):
        (inbox / f"before-{number}.yaml").write_text(job(prompt, number))
    (inbox / "typo.yaml").write_text("promt: a fox\n")
    run_sdbatch("serve", "--drain", "--root", root, env=DRAWING)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ended(started("serve", "--root", root, env=DRAWING, **quiet)), served(root) as address:
        yield Site(root, address)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Of a process that goes on until it is told to stop."""
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def served(root: Path, port: str = "0") -> Iterator[str]:
    """The address of a root's page."""
    page = started("web", "--root", root, "--bind", f"127.0.0.1:{port}", stdout=subprocess.PIPE)
    assert page.stdout is not None
    with page.stdout, ended(page):
        found = re.search(r"http://\S+(?=/\n)", page.stdout.readline())
        assert found
        yield found[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(params=["desktop-light", "phone-dark"])
def look(request: pytest.FixtureRequest) -> str:
    """Layout hangs on the size alone and colours on the theme alone, so that two of four show everything."""
    return str(request.param)


@pytest.fixture
def size(look: str) -> str:
    return look.partition("-")[0]


@pytest.fixture
def theme(look: str) -> str:
    return look.partition("-")[2]


ONE_LOOK = pytest.mark.parametrize("look", ["desktop-light"])  # of what looks have nothing to do with


@pytest.fixture
def page(browser: Browser, site: Site, size: str, theme: str) -> Iterator[Page]:
    """A visitor's; at its end nothing may have gone wrong, and nothing may have been asked of anybody else."""
    width, height = SIZES[size]
    context = browser.new_context(
        base_url=site.address,
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        has_touch=size == "phone",
        is_mobile=size == "phone",
        locale="en",
    )
    visitor = context.new_page()
    wrong: list[str] = []
    visitor.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    visitor.on("pageerror", lambda error: wrong.append(str(error)))
    visitor.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url} {asked.failure}"))
    visitor.on("request", lambda asked: wrong.append(asked.url) if is_elsewhere(asked.url, site.address) else None)
    visitor.on("dialog", lambda dialog: dialog.accept())
    yield visitor
    context.close()
    # What is still under way when a page is left is given up, which htmx tells too, and no fault.
    is_given_up = any("net::ERR_ABORTED" in text for text in wrong)
    told = ("htmx:afterRequest", "htmx:sendAbort", "htmx:sendError") if is_given_up else ()
    assert [text for text in wrong if "net::ERR_ABORTED" not in text and not text.startswith(told)] == []


def is_elsewhere(url: str, address: str) -> bool:
    return urlsplit(url).scheme != "data" and urlsplit(url).netloc != urlsplit(address).netloc


def check_access(page: Page) -> None:
    """axe-core finds nothing serious, and nothing sticks out to the side."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 10, "it looked"
    told = [(v["id"], [node["html"] for node in v["nodes"]]) for v in found["violations"]]
    assert told == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def take(page: Page, name: str, size: str, theme: str) -> None:
    """A picture for the documentation, where one is asked for; of few colours, as it is looked at in small."""
    folder = os.environ.get("SCREENSHOTS")
    is_narrow = (size, theme) == ("phone", "dark") and name in ("queue", "history", "new", "picture")
    if folder and ((size, theme) == ("desktop", "light") or is_narrow):
        path = Path(folder) / f"web-{name}{'-phone' if size == 'phone' else ''}.png"
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=path)
        with Image.open(path) as shot:
            shot.convert("RGB").quantize(256).save(path, optimize=True)


def results(page: Page) -> Locator:
    return page.locator("#results a[href*='/picture/']")


def wait_until_drawn(page: Page, words: str, count: int) -> None:
    """Until the history has them; typing the words is left to the test."""
    for _ in range(SECONDS // 500):
        if page.request.get("/history", params={"words": words}).text().count('href="/picture/') == count:
            return
        page.wait_for_timeout(500)
    raise AssertionError(f"no {count} pictures of {words}")


def look_at_what_is_drawn(page: Page) -> None:
    """The first batch of the job, whose second one is held back."""
    drawn = page.get_by_role("link", name=re.compile(r"^0000\d\.png: a panda"))
    expect(drawn).to_have_count(3)
    expect(page.get_by_text(re.compile("^(fake|cpu|auto) · drawing"))).to_be_visible()
    assert drawn.first.locator("img").evaluate("img => img.decode().then(() => img.naturalWidth)") > 1
    check_access(page)
    drawn.first.focus()
    with page.expect_event("requestfinished", lambda asked: asked.url.endswith("/queue")):
        pass  # else one that is under way would be given up, and the page complain
    page.keyboard.press("Enter")
    expect(page.locator("img.large")).to_be_visible()
    check_access(page)
    page.go_back()
    expect(drawn).to_have_count(3)


def test_the_whole_story(page: Page, site: Site, size: str, theme: str) -> None:
    """A job by form, watched, found by a Chinese word, restored, followed up on picture 3, seen in its lineage."""
    fruit = {"desktop": "葡萄", "phone": "苹果"}[size]
    page.goto("/")
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Prompt prompt", exact=True).fill(f"a panda on a blue background, {fruit}")
    for label, value in {"Height": "64", "Width": "64", "Iterations": "2", "Batch size": "3", "Steps": STEPS}.items():
        page.get_by_label(re.compile(f"^{label} ")).fill(value)
    expect(page.locator("#yaml")).to_contain_text(f"ddim_steps: {STEPS}")
    expect(page.locator("#preview")).to_contain_text(f"6 pictures of 64x64, DDIM, {STEPS} steps")
    take(page, "new", size, theme)
    hold = site.root / "state/hold"  # after its first batch, until the page has shown it
    hold.touch()
    page.get_by_role("button", name="Draw", exact=True).click()

    expect(page.get_by_role("status").first).to_contain_text("Dropped as jobs/inbox/a-panda")
    expect(page.get_by_role("progressbar")).to_be_visible(timeout=SECONDS)
    expect(page.get_by_text(re.compile(r"[1-5] of 6 images|step \d+ of"))).to_be_visible(timeout=SECONDS)
    take(page, "queue", size, theme)
    look_at_what_is_drawn(page)
    hold.unlink()
    expect(page.get_by_role("progressbar")).to_be_hidden(timeout=SECONDS)
    wait_until_drawn(page, fruit, 6)

    page.get_by_role("link", name="Gallery").click()
    page.get_by_label("Words of the prompt").fill(fruit)
    expect(results(page)).to_have_count(6)
    results(page).nth(2).click()
    expect(page.get_by_text("3 of 6")).to_be_visible()
    third = page.url

    page.get_by_role("link", name="Restore into the form").click()
    expect(page.get_by_label("Prompt prompt", exact=True)).to_have_value(f"a panda on a blue background, {fruit}")
    expect(page.get_by_label(re.compile("^Steps"))).to_have_value(STEPS)

    page.goto(third)
    page.get_by_label("Prompt", exact=True).fill(f"a fox on a yellow background, {fruit}")
    page.get_by_label("Strength").fill("0.9")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("Dropped as jobs/inbox/a-panda")
    wait_until_drawn(page, f"fox {fruit}", 6)

    page.goto("/history")
    page.get_by_label("Words of the prompt").fill(f"fox {fruit}")
    expect(results(page)).to_have_count(6)
    results(page).first.click()
    lineage = page.locator("#lineage li")
    expect(lineage).to_have_count(2)
    expect(lineage.first).to_contain_text("a panda on a blue background")
    expect(lineage.nth(1)).to_contain_text("from samples/00002.png")
    take(page, "picture", size, theme)
    lineage.first.locator("a").first.click()
    expect(page.get_by_role("heading", name=f"a panda on a blue background, {fruit}")).to_be_visible()


@pytest.mark.parametrize(
    ("look", "language"),
    [
        ("desktop-light", "English"),
        pytest.param("phone-dark", "English", marks=pytest.mark.thorough),
        ("phone-dark", "中文"),
    ],
)
def test_all_four_views_can_be_used_by_everybody(page: Page, site: Site, size: str, theme: str, language: str) -> None:
    page.goto("/")
    if language != "English":
        page.get_by_role("button", name=language).click()
        expect(page.get_by_role("link", name="图库")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", theme)
    told = "did you mean prompt?" if language == "English" else "没有这个字段"
    expect(page.get_by_text(told).first).to_be_visible()
    check_access(page)
    page.goto("/new")
    page.locator("#field-prompt").fill("a fox")
    expect(page.locator("#yaml")).to_contain_text("a fox")
    page.locator("summary").click()
    check_access(page)
    page.goto("/new?kind=img2img")
    page.locator("#field-prompt").fill("a fox")
    page.get_by_text("or an earlier one" if language == "English" else "或选择以前的图片").click()
    expect(page.locator("#choices button")).not_to_have_count(0)
    check_access(page)
    page.goto("/history")
    page.wait_for_load_state("networkidle")
    check_access(page)
    if language == "English":
        take(page, "history", size, theme)
    results(page).first.click()
    expect(page.locator("img.large")).to_be_visible()
    page.locator("summary").click()
    check_access(page)
    page.goto("/history?failed=1")
    check_access(page)
    page.goto("/history?words=nothing")
    expect(page.get_by_role("status")).to_be_visible()
    check_access(page)


@ONE_LOOK
def test_a_job_starts_from_an_upload_or_an_earlier_picture(
    page: Page, site: Site, size: str, theme: str, tmp_path: Path
) -> None:
    upload = tmp_path / f"mine-{size}-{theme}.png"
    Image.new("RGB", (64, 64), "orange").save(upload)
    page.goto("/new")
    page.get_by_label("Prompt prompt", exact=True).fill("a fox")
    page.get_by_role("button", name="From a picture").click()
    expect(page.get_by_label("Prompt prompt", exact=True)).to_have_value("a fox")
    page.get_by_text("or an earlier one").click()
    page.locator("#choices button").first.click()
    expect(page.get_by_label(re.compile("^Init image"))).to_have_value(re.compile(r"jobs/done/.*\.png"))
    expect(page.locator("img.chosen")).to_be_visible()
    page.get_by_label("or a picture of yours").set_input_files(upload)
    expect(page.locator("#yaml")).to_contain_text("init_img: jobs/inbox/uploads/your-picture.png")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("Dropped as jobs/inbox/a-fox")
    assert list((site.root / "jobs/inbox/uploads").glob(f"from-the-page-mine-{size}-{theme}-*.png"))


@ONE_LOOK
def test_what_is_changed_as_soon_as_the_form_is_there_counts(page: Page, site: Site, size: str, theme: str) -> None:
    """A new form listens from the moment that it can be seen."""
    page.goto("/new")
    page.get_by_label("Prompt prompt", exact=True).fill("a fox")
    expect(page.locator("#yaml")).to_contain_text("a fox")
    page.evaluate("""() => new MutationObserver((changes, observer) => {
        observer.disconnect();
        const prompt = document.getElementById("field-prompt");
        prompt.value = "a hen";
        prompt.dispatchEvent(new Event("input", {bubbles: true}));
    }).observe(document.getElementById("form"), {childList: true})""")
    page.get_by_role("button", name="From a picture").click()
    expect(page.get_by_label("Prompt prompt", exact=True)).to_have_value("a hen")
    expect(page.locator("#yaml")).to_contain_text("a hen")


@ONE_LOOK
def test_a_wrong_value_that_is_closed_away_is_shown(page: Page, site: Site, size: str, theme: str) -> None:
    page.goto("/new")
    page.get_by_label("Prompt prompt", exact=True).fill("a fox")
    page.locator("summary").click()
    page.get_by_label(re.compile("^Priority")).fill("500")
    page.locator("summary").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_label(re.compile("^Priority"))).to_be_visible()
    expect(page.get_by_label(re.compile("^Priority"))).to_be_focused()


@ONE_LOOK
def test_the_keyboard_is_enough(page: Page, site: Site, size: str, theme: str) -> None:
    page.goto("/history")
    page.keyboard.press("/")
    expect(page.get_by_label("Words of the prompt")).to_be_focused()
    page.keyboard.type("banana")
    expect(results(page)).to_have_count(3)
    for _ in range(16):
        if page.evaluate("document.activeElement.closest('#results a') !== null"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 of 3")).to_be_visible()
    for key, told in {"ArrowRight": "2 of 3", "ArrowLeft": "1 of 3"}.items():
        page.wait_for_load_state("load")  # the keys work from then on
        page.keyboard.press(key)
        expect(page.get_by_text(told)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("/history"))
    page.wait_for_load_state("load")
    page.keyboard.press("n")
    expect(page.get_by_label("Prompt prompt", exact=True)).to_be_visible()


@pytest.mark.thorough  # some seconds of a browser
def test_the_viewer_goes_over_the_whole_search_and_zooms(page: Page, site: Site, size: str, theme: str) -> None:
    page.goto("/history?order=oldest")
    results(page).nth(2).click()
    stage, image = page.locator("#stage"), page.locator("#stage .large")
    first = page.url
    page.wait_for_load_state("networkidle")
    box = stage.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    drag(page, middle, (middle[0] - 150, middle[1]))  # a swipe: the next job's image, which no other of this job is
    expect(page).not_to_have_url(first)
    expect(page).to_have_url(re.compile("order=oldest"))
    second = page.url
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(second)
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(second)
    image.dblclick()
    expect(stage).to_have_class(re.compile("zoomed"))
    before = image.bounding_box()
    drag(page, middle, (middle[0] + 40, middle[1]))
    after = image.bounding_box()
    assert before is not None
    assert after is not None
    assert abs(after["x"] - before["x"] - 40) < 2
    expect(page).to_have_url(second)
    page.keyboard.press("z")
    expect(stage).not_to_have_class(re.compile("zoomed"))
    pressed = page.locator(".tools .star").get_attribute("aria-pressed")
    page.keyboard.press("s")
    expect(page.locator(".tools .star")).not_to_have_attribute("aria-pressed", str(pressed))
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator("html")).to_have_class(re.compile("full"))
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(first)
    expect(page.locator("html")).to_have_class(re.compile("full"))
    check_access(page)
    page.keyboard.press("f")
    expect(page.locator("html")).not_to_have_class(re.compile("full"))
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{site.address}/history?order=oldest")


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


@pytest.mark.thorough  # likewise
def test_images_are_chosen_and_something_is_done_with_them(page: Page, site: Site, size: str, theme: str) -> None:
    tag = f"from {size}"
    page.goto("/history?words=frog")
    if size == "phone":
        page.get_by_role("button", name="How it was made").first.tap()
    else:
        page.locator(".shot").first.hover()
    expect(page.locator(".told").first).to_have_css("opacity", "1")
    expect(page.locator(".told").first).to_contain_text("Seed")
    expect(page.locator(".bar")).to_be_hidden()
    picks = page.locator(".pick")
    picks.first.check()
    picks.nth(2).click(modifiers=["Shift"])
    expect(page.get_by_text("3 chosen")).to_be_visible()
    check_access(page)
    take(page, "chosen", size, theme)
    page.locator("summary", has_text="Tag").click()
    page.get_by_label("Tags, with commas between").fill(tag)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("3 images are tagged anew")).to_be_visible()
    page.goto(f"/history?tag={tag}")
    expect(results(page)).to_have_count(3)
    number = list(SIZES).index(size)  # each has its own
    page.locator(".shot").nth(number).hover()
    page.locator(".star").nth(number).click()
    expect(page.locator(".star").nth(number)).to_have_attribute("aria-pressed", "true")
    page.get_by_label("favourites").check()
    expect(results(page)).to_have_count(number + 1)
    page.goto(f"/history?tag={tag}")
    for number in (0, 2):
        picks.nth(number).check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("columnheader")).to_have_count(2)
    check_access(page)
    take(page, "compare", size, theme)
    page.get_by_role("link", name="Back", exact=True).click()
    expect(results(page)).to_have_count(3)
    picks.first.check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.endswith(".zip")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="to the trash?")).to_be_visible()
    check_access(page)
    page.get_by_role("link", name="Keep them").click()
    expect(results(page)).to_have_count(3)


@pytest.mark.thorough  # likewise
@pytest.mark.parametrize("look", ["desktop-light"])
def test_the_form_keeps_what_was_typed_and_an_image_fills_it(
    page: Page, site: Site, size: str, theme: str, tmp_path: Path
) -> None:
    prompt = page.get_by_label("Prompt prompt", exact=True)
    page.goto("/new")
    expect(page.locator("#preview")).to_contain_text("Write a prompt.")
    expect(page.locator(".text-danger-emphasis")).to_have_count(0)
    prompt.fill("a goose, kept")
    page.get_by_role("button", name="Random").click()
    page.get_by_role("button", name="64×128").click()  # noqa: RUF001
    expect(page.locator("#yaml")).to_contain_text("seed: -1")
    page.goto("/")
    page.goto("/new")
    expect(prompt).to_have_value("a goose, kept")
    expect(page.locator("#yaml")).to_contain_text("H: 128")
    drop_image(page, lay(tmp_path / "elsewhere.png", WEBUI).read_bytes())
    expect(prompt).to_have_value("a cat")
    page.get_by_role("button", name="Start from this image instead").click()
    expect(page.locator("#yaml")).to_contain_text("init_img: jobs/inbox/uploads/your-picture.png")
    check_access(page)
    page.get_by_role("link", name="Start afresh").click()
    expect(prompt).to_have_value("")


def drop_image(page: Page, data: bytes) -> None:
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], "mine.png", {type: "image/png"}));
            const how = {bubbles: true, cancelable: true, dataTransfer};
            document.getElementById("job").dispatchEvent(new DragEvent("drop", how));
        }""",
        base64.b64encode(data).decode(),
    )


@pytest.mark.thorough  # likewise
@pytest.mark.parametrize("look", ["desktop-light"])
def test_the_line_is_put_in_order_by_dragging_and_by_the_keyboard(
    page: Page, site: Site, size: str, theme: str
) -> None:
    page.goto("/")
    page.get_by_role("button", name="Pause").click()
    inbox = site.root / "jobs" / "inbox"
    for name in ("drag-1", "drag-2"):
        (inbox / f"{name}.yaml").write_text(job("a fox"))
    (inbox / "drag-3.yaml").write_text("---\n".join(job(f"a hen {number}") for number in range(3)))
    rows = page.locator("#line > li")
    expect(rows).to_have_count(3)
    rows.nth(2).drag_to(rows.nth(0), target_position={"x": 20, "y": 5})
    expect(rows.nth(0)).to_contain_text("drag-3.yaml")
    page.locator("summary", has_text="Its jobs").click()
    with page.expect_event("requestfinished", lambda asked: asked.url.endswith("/queue")):
        pass
    expect(page.get_by_text("a hen 2")).to_be_visible()
    check_access(page)
    take(page, "line", size, theme)
    page.get_by_role("button", name="Up: drag-2.yaml").press("Enter")
    expect(rows.nth(1)).to_contain_text("drag-2.yaml")
    expect(rows.nth(0)).to_contain_text("drag-3.yaml")
    for path in inbox.glob("drag-*.yaml"):
        path.unlink()
    expect(page.get_by_text("Nothing waits.")).to_be_visible()
    page.get_by_role("button", name="Go on").click()


@ONE_LOOK
def test_typing_leaves_one_entry_to_go_back_over(page: Page, site: Site, size: str, theme: str) -> None:
    page.goto("/")
    page.goto("/history")
    page.get_by_label("Words of the prompt").press_sequentially("banana", delay=200)
    expect(results(page)).to_have_count(3)
    expect(page).to_have_url(re.compile("words=banana"))
    page.go_back()
    expect(page).to_have_url(f"{site.address}/")


@pytest.mark.parametrize("look", ["phone-dark"])
def test_buttons_leave_a_failure_room_on_a_phone(page: Page, site: Site, size: str, theme: str) -> None:
    """A failed job of a file of several has many buttons: its reason stays readable beside or above them."""
    (site.root / "jobs" / "inbox" / "several.yaml").write_text("promt: a fox\n---\npromt: a cat\n")
    page.goto("/")
    row = page.locator("li", has_text="several.yaml").first
    expect(row.get_by_role("button")).to_have_count(3)
    text, whole = row.locator(".text-break").bounding_box(), row.bounding_box()
    assert text is not None
    assert whole is not None
    assert text["width"] > whole["width"] / 2
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@ONE_LOOK
def test_the_queue_is_steered(page: Page, site: Site, size: str, theme: str) -> None:
    page.goto("/")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    for name in ("one", "two"):
        (site.root / "jobs" / "inbox" / f"{name}.yaml").write_text(job("a fox"))
    expect(page.locator("li", has_text="two.yaml")).to_be_visible()
    page.get_by_role("button", name="To the front: two.yaml").click()
    expect(page.locator("ol li").first).to_contain_text("urgent/two.yaml", timeout=SECONDS)
    page.get_by_role("button", name="Cancel: one.yaml").click()
    page.get_by_role("button", name="Cancel: urgent/two.yaml").click()
    expect(page.get_by_text("Nothing waits.")).to_be_visible()
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_a_theme_that_is_chosen_stays(page: Page, site: Site, size: str, theme: str) -> None:
    page.goto("/")
    other = "light" if theme == "dark" else "dark"
    page.get_by_role("button", name="Light or dark").click()
    page.goto("/new")
    expect(page.locator("html")).to_have_attribute("data-bs-theme", other)


def test_older_pictures_come_while_scrolling(browser: Browser, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    drop_job(root, "many.yaml", "prompt: many\nH: 64\nW: 64\nn_iter: 1\nn_samples: 150\n")
    drain(Service(root, Settings(), FakeEngine()), FakeClock())
    with served(root.path) as address:
        page = browser.new_page(base_url=address)
        page.goto("/history")
        expect(results(page)).to_have_count(60)
        for count in (120, 150):
            page.mouse.wheel(0, 100_000)
            expect(results(page)).to_have_count(count)
        expect(page.get_by_text("Older ones")).to_have_count(0)
        assert len(set(results(page).evaluate_all("links => links.map(link => link.href)"))) == 150
        results(page).nth(140).scroll_into_view_if_needed()
        place = page.evaluate("scrollY")
        assert place > 1000
        results(page).nth(140).click()
        expect(page.locator("img.large")).to_be_visible()
        page.go_back()
        expect(results(page)).to_have_count(150)
        page.wait_for_function("place => Math.abs(scrollY - place) < 100", arg=place)
        page.close()


def test_a_page_of_a_server_that_was_started_again_says_so(browser: Browser, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    page = browser.new_page()
    with served(root.path) as address:
        page.goto(f"{address}/new")
    with served(root.path, address.rpartition(":")[2]):
        page.get_by_label("Prompt prompt", exact=True).fill("a fox")
        expect(page.get_by_text("This page is older than its server")).to_be_visible()
        page.reload()
        page.get_by_label("Prompt prompt", exact=True).fill("a fox")
        expect(page.locator("#yaml")).to_contain_text("a fox")
        page.close()
