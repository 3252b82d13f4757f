"""The report as a browser shows it."""

import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread

from lung_unet.evaluation.split import evaluate_split

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = (1100, 3000)


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.skip(f"no browser, of {', '.join(BROWSERS)}; install Chromium")


@pytest.fixture
def look(browser, tmp_path):
    """look(path, *flags) → (picture of the page, what the page logged to the console)."""

    def look(path: pathlib.Path, *flags: str) -> tuple[np.ndarray, list[str]]:
        picture = tmp_path / "page.png"
        process = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
             f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={picture}", *flags,
             path.as_uri()],
            capture_output=True, encoding="utf-8", timeout=120, check=True,
        )  # fmt: skip
        return imread(picture)[..., :3], re.findall(r".*:CONSOLE.*", process.stderr)

    return look


def test_it_shows_without_a_console_error_on_light_and_dark_pages(
    look, config, dataset, oracle, tmp_path
):
    evaluate_split(oracle(shift=2), config, dataset, "test", tmp_path / "run", [{"step": 7}])
    report = tmp_path / "run" / "report.html"
    light, errors = look(report)
    assert errors == []
    dark, errors = look(report, "--blink-settings=preferredColorScheme=0")
    assert errors == []
    for picture, page in ((light, (0.9, 1.0)), (dark, (0.0, 0.2))):
        assert picture.shape[:2] == SIZE[::-1]
        assert page[0] <= np.median(picture) <= page[1]
        bands = picture[:2000].reshape(8, -1)
        assert (np.ptp(bands, axis=1) > 0.3).all()  # there is something to see all the way down


def test_a_console_error_would_be_seen(look, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nothing.at_all()</script>")
    assert "not defined" in look(broken)[1][0]
