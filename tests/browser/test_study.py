"""The page of the perceptual study, used as a participant uses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.support.wait import WebDriverWait

from shared import study

REAL, PAINTED = 4, 5
COUNT = REAL + PAINTED


T = TypeVar("T")


class Shown(NamedTuple):
    name: str
    truth: str


class Participant:
    """Knows red images to be painted and blue ones to be real, from their pixels alone."""

    def __init__(self, browser: Chrome, page: Path) -> None:
        self.browser = browser
        self.page = page

    def open(self, query: str = "") -> Participant:
        self.browser.get(self.page.as_uri() + query)
        return self

    def start(self, query: str = "?seed=1") -> Participant:
        self.open(query).click("begin")
        return self

    def wait(self, condition: Callable[[], T]) -> T:
        return WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda _: condition())

    def click(self, element: str) -> None:
        self.browser.find_element("id", element).click()

    def press(self, key: str) -> None:
        ActionChains(self.browser).send_keys(key).perform()

    def text(self, element: str) -> str:
        return self.browser.find_element("id", element).text

    def visible(self, element: str) -> bool:
        return self.browser.find_element("id", element).is_displayed()

    def look(self, number: int) -> Shown:
        """The image shown, once it is the one with this number."""
        self.wait(lambda: self.text("progress") == f"{number} of {COUNT}" and self.visible("image"))
        image = self.browser.find_element("id", "image")
        assert image.get_property("complete")
        assert image.get_property("naturalWidth") == 8
        assert image.size["width"] >= 300
        path = Path(str(image.get_property("src")).removeprefix("file://"))
        red, _, blue = Image.open(path).getpixel((0, 0))
        return Shown(f"images/{path.name}", "painted" if red > blue else "real")

    def answer_all(self, answer: Callable[[int, Shown], None]) -> list[Shown]:
        shown = []
        for number in range(1, COUNT + 1):
            shown.append(self.look(number))
            answer(number, shown[-1])
        self.wait(lambda: self.visible("result"))
        return shown

    def confusion(self) -> dict[str, dict[str, str]]:
        return {
            truth: {said: self.text(f"{truth}-{said}").replace("\n", " ") for said in study.CLASSES}
            for truth in study.CLASSES
        }


def complete(downloads: Path) -> Iterator[Path]:
    """Files with their final name and content: Chromium first makes a temporary one and an empty one."""
    return (path for path in downloads.glob("answers-*.json") if path.stat().st_size > 0)


@pytest.fixture
def participant(browser: Chrome, tmp_path: Path) -> Participant:
    def images(count: int, channel: int) -> list[torch.Tensor]:
        group = torch.full((count, 3, 8, 8), -1.0)
        group[:, channel] = torch.linspace(0.2, 1, count)[:, None, None]
        return list(group)

    page = study.write_study(tmp_path / "study", images(REAL, 2), images(PAINTED, 0), title="Blue & red?")
    return Participant(browser, page)


def test_session_by_clicks(participant: Participant, downloads: Path) -> None:
    """Real images are told right, and of the painted ones the first is taken for real."""
    said: list[str] = []
    seen: list[str] = []

    def answer(number: int, shown: Shown) -> None:
        fooled = shown.truth == "painted" and "painted" not in seen
        seen.append(shown.truth)
        said.append("real" if fooled else shown.truth)
        participant.click(said[-1])

    participant.open()
    assert participant.text("start").startswith("Blue & red?\nYou will see 9 images, one at a time.")
    participant.click("begin")
    shown = participant.answer_all(answer)
    assert sorted(image.name for image in shown) == [f"images/{n:03d}.png" for n in range(1, COUNT + 1)]

    assert participant.confusion() == {
        "real": {"real": "4 100.0%", "painted": "0 0.0%"},
        "painted": {"real": "1 20.0%", "painted": "4 80.0%"},
    }
    assert participant.text("score") == "You were right about 8 of 9"
    low, high = study.wilson(1, 5)
    assert participant.text("fooled") == f"20.0%\n1 of 5\n95% interval {low:.1%} to {high:.1%}"
    low, high = study.wilson(8, 9)
    assert participant.text("accuracy") == f"88.9%\n8 of 9\n95% interval {low:.1%} to {high:.1%}"

    participant.click("download")
    path = participant.wait(lambda: next(complete(downloads), None))
    answers = json.loads(path.read_text())
    assert path.name == f"answers-{answers['seed']}.json"
    assert [(row["image"], row["truth"], row["answer"]) for row in answers["answers"]] == [
        (image.name, image.truth, word) for image, word in zip(shown, said, strict=True)
    ]
    assert all(0 <= row["milliseconds"] < 60_000 for row in answers["answers"])
    assert study.summarise([path]) == {
        "real": {"real": 4, "painted": 0},
        "painted": {"real": 1, "painted": 4},
    }


def test_session_by_keys(participant: Participant) -> None:
    keys = {"real": ("r", Keys.ARROW_LEFT, "R"), "painted": ("p", Keys.ARROW_RIGHT, "P")}

    def contradict(number: int, shown: Shown) -> None:
        said = "real" if shown.truth == "painted" else "painted"
        participant.press("x")  # means nothing
        participant.press(keys[said][number % 3])

    participant.start().answer_all(contradict)
    assert participant.text("score") == "You were right about 0 of 9"
    assert participant.confusion() == {
        "real": {"real": "0 0.0%", "painted": "4 100.0%"},
        "painted": {"real": "5 100.0%", "painted": "0 0.0%"},
    }


def test_shortcuts_of_the_browser_and_held_keys_are_no_answers(participant: Participant) -> None:
    participant.start().look(1)
    ActionChains(participant.browser).key_down(Keys.ALT).send_keys("p").key_up(Keys.ALT).perform()
    held = {"type": "keyDown", "key": "p", "autoRepeat": True}
    participant.browser.execute_cdp_cmd("Input.dispatchKeyEvent", held)
    assert participant.text("progress") == "1 of 9"
    participant.browser.execute_cdp_cmd("Input.dispatchKeyEvent", {**held, "autoRepeat": False})
    participant.look(2)


def test_back_changes_the_last_answer(participant: Participant) -> None:
    participant.start()
    first = participant.look(1)
    assert not participant.browser.find_element("id", "back").is_enabled()
    participant.press(Keys.BACKSPACE)
    participant.click("real")
    second = participant.look(2)
    participant.click("real")
    participant.look(3)
    participant.click("back")
    assert participant.look(2) == second
    participant.press(Keys.BACKSPACE)
    assert participant.look(1) == first
    participant.answer_all(lambda number, shown: participant.click("painted"))
    assert participant.text("fooled").startswith("0.0%\n0 of 5\n95% interval 0.0% to ")
    assert participant.confusion() == {
        "real": {"real": "0 0.0%", "painted": "4 100.0%"},
        "painted": {"real": "0 0.0%", "painted": "5 100.0%"},
    }


def test_reload_keeps_order_and_answers(participant: Participant) -> None:
    participant.start("")  # a random order
    for number in (1, 2, 3):
        participant.look(number)
        participant.click("real")
    fourth = participant.look(4)
    participant.click("real")
    participant.look(5)
    participant.click("back")
    assert participant.look(4) == fourth
    participant.browser.refresh()
    assert participant.text("begin") == "Continue with 4 of 9"
    participant.click("begin")
    assert participant.look(4) == fourth
    for number in range(4, COUNT + 1):
        participant.look(number)
        participant.click("real")
    expected = {
        "real": {"real": "4 100.0%", "painted": "0 0.0%"},
        "painted": {"real": "5 100.0%", "painted": "0 0.0%"},
    }
    participant.wait(lambda: participant.visible("result"))
    assert participant.confusion() == expected
    participant.browser.refresh()
    assert participant.confusion() == expected


def test_next_participant_starts_anew_once_answers_are_saved(participant: Participant) -> None:
    participant.start().answer_all(lambda number, shown: participant.click("real"))
    assert not participant.visible("next")
    participant.click("download")
    participant.click("next")
    participant.wait(lambda: participant.visible("begin"))
    assert participant.text("begin") == "Start"


def test_new_tab_is_a_new_participant(participant: Participant) -> None:
    participant.start("").look(1)
    participant.click("real")
    participant.look(2)
    participant.browser.switch_to.new_window("tab")
    participant.open()
    assert participant.text("begin") == "Start"


def test_answers_to_another_study_in_the_same_place_are_not_kept(participant: Participant) -> None:
    participant.start().look(1)
    participant.click("real")
    participant.look(2)
    images = torch.zeros(1, 3, 8, 8)
    study.write_study(participant.page.parent, images, images, title="Another")
    participant.browser.refresh()
    assert participant.text("begin") == "Start"


def test_order_depends_on_the_seed(participant: Participant) -> None:
    def order(query: str) -> list[Shown]:
        participant.browser.switch_to.new_window("tab")
        return participant.start(query).answer_all(lambda number, shown: participant.press("r"))

    first, again, other, another = (order(query) for query in ("?seed=0", "?seed=0", "?seed=1", ""))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == sorted(another)
    assert another not in (first, other)


def test_time_limit_hides_the_image_and_waits_for_the_answer(participant: Participant) -> None:
    participant.open("?seed=1&seconds=1")
    assert "Each image is shown for 1 s" in participant.text("start")
    participant.click("begin")
    participant.look(1)
    participant.wait(lambda: not participant.visible("image"))
    assert participant.text("progress") == "1 of 9"
    participant.press("p")
    participant.look(2)


def test_nothing_tells_the_class(participant: Participant) -> None:
    """What a participant sees or hears of an image, besides the image."""
    participant.start().look(1)
    image = participant.browser.find_element("id", "image")
    assert image.accessible_name == "Image 1"
    assert participant.browser.find_element("id", "progress").aria_role == "status"
    for name in ("real", "painted", "back"):
        assert participant.browser.find_element("id", name).aria_role == "button"
    names = [path.name for path in participant.page.parent.rglob("*")]
    assert not [name for name in names if "real" in name or "painted" in name]


@pytest.mark.parametrize(("width", "height"), [(360, 640), (740, 360), (1280, 800)])
def test_image_and_buttons_fit_the_window(participant: Participant, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    participant.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    participant.start()
    participant.wait(lambda: participant.visible("image"))
    for name in ("back", "image", "real", "painted"):
        box = participant.browser.find_element("id", name).rect
        assert min(box["x"], box["y"]) >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height


@pytest.mark.expects_errors
@pytest.mark.parametrize(
    "query", ["seconds=0", "seconds=", "seconds=soon", "seed=-1", "seed=1.5", "seed=4294967296"]
)
def test_bad_option(participant: Participant, query: str) -> None:
    name, value = query.split("=")
    message = participant.open(f"?{query}").text("error")
    assert message.startswith(f"{name} in this page's address must be a ")
    assert message.endswith(f'got "{value}"')
    assert not participant.visible("begin")


@pytest.mark.expects_errors
def test_missing_image_is_an_error(participant: Participant) -> None:
    for path in (participant.page.parent / "images").iterdir():
        path.unlink()
    participant.start()
    participant.wait(lambda: participant.visible("error"))
    assert participant.text("error").startswith("cannot show images/00")
    participant.click("real")
    assert participant.text("progress") == "1 of 9"
