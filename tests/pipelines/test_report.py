"""The report as people see it: in Chromium, where there is one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from pipelines import evaluate

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
IMAGES = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory, photo) -> Path:
    """Originals, restored images, and two alphas of enhanced ones, as transport writes them."""
    root = tmp_path_factory.mktemp("report")
    for index in range(IMAGES):
        pixels = photo(120, 160, seed=index)
        smooth = np.asarray(Image.fromarray(pixels).reduce(4).resize((160, 120)))
        versions = {"original": pixels, "restored": smooth}
        for alpha in (0.0, 0.5):
            mixed = alpha * smooth.astype(float) + (1 - alpha) * np.minimum(pixels + 1.0 + index % 4, 255)
            versions[f"enhanced/images/alpha={alpha:.2f}"] = mixed.round().astype(np.uint8)
        for folder, image in versions.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / folder / f"{index}.png")
    return root


def _report(folders: Path, reference: Path, report: Path) -> Path:
    candidates = [f"restored={folders}/restored", f"enhanced={folders}/enhanced"]
    arguments = ["--reference", str(reference), "--candidate", *candidates, "--report", str(report)]
    assert evaluate.main([*arguments, "--features", "pixel"]) == 0
    return report


@pytest.fixture(scope="module")
def page_url(folders, tmp_path_factory) -> str:
    return (_report(folders, folders / "original", tmp_path_factory.mktemp("page")) / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def _open(browser: Browser, url: str, width: int = 1280, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    assert errors == []
    return page


@in_chromium
def test_the_sliders_move_by_keyboard_and_mouse(browser, page_url):
    page = _open(browser, page_url)
    figure = page.locator(".compare").first
    split, stack, alpha = figure.locator(".split"), figure.locator(".stack"), figure.locator(".alpha")
    assert stack.evaluate("stack => stack.style.getPropertyValue('--split')") == "50%"
    split.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert stack.evaluate("stack => stack.style.getPropertyValue('--split')") == "47%"
    box = stack.bounding_box()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 20)
    assert abs(float(split.input_value()) - 80) <= 1
    shown = figure.locator("output")
    assert shown.inner_text() == "enhanced alpha=0.00"
    alpha.focus()
    page.keyboard.press("ArrowLeft")
    assert shown.inner_text() == "enhanced alpha=0.50"
    assert figure.locator(".after:visible").get_attribute("data-name") == "enhanced alpha=0.50"


@in_chromium
def test_the_table_of_images_is_sorted_by_any_column(browser, page_url):
    page = _open(browser, page_url)
    rows = page.locator("table.sortable tbody tr")
    assert rows.count() == IMAGES

    def column(number: int) -> list[float]:
        return [float(row.locator("td").nth(number).get_attribute("data-value")) for row in rows.all()]

    changes = column(3)
    assert changes == sorted(changes, reverse=True)
    head = page.locator("table.sortable th").nth(4)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(4) == sorted(column(4), reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(4) == sorted(column(4))
    assert page.locator("table.sortable th").nth(3).get_attribute("aria-sort") is None


@in_chromium
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_axe_finds_no_fault(browser, page_url, width, scheme):
    page = _open(browser, page_url, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def test_other_photographs_than_the_originals_give_all_but_psnr(folders, tmp_path, photo, capsys):
    others = tmp_path / "others"
    others.mkdir()
    for index in range(IMAGES):
        Image.fromarray(photo(120, 160, seed=100 + index)).save(others / f"another-{index}.png")
    report = _report(folders, others, tmp_path / "report")
    found = json.loads((report / "totals.json").read_text())
    assert found["failures"] == 0
    assert {row["psnr_mean"] for row in found["candidates"]} == {None}
    assert all(row["images"] == IMAGES and row["count"] == 0 for row in found["candidates"])
    assert all(row["distances"]["pixel"] > 0 for row in found["candidates"])
    assert "No image has an original of the same name" in " ".join(found["verdict"])
    page = (report / "report.html").read_text()
    assert "against change from the restored images" in page
    assert "The most changed images" in page
    assert page.count("<polyline") == 1
    assert "PSNR," not in page
    assert f"{IMAGES} images have no original of their name" in capsys.readouterr().out
