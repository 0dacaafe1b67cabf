"""The widgets of the playground and what it shows of an answer, in a real browser (contract 3.3)."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import browsing, ended, field, looking_at, run
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import HOUSE, Runner, serving

EXAMPLES = HOUSE / "examples"
APPS, DATA = Path(__file__).parent / "apps", Path(__file__).parent / "data"
TETRAHEDRON = "v 0 0 0\nv 1 0 0 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1/1 2/2 4/3\nf -3 -2 -1\nf 3 1 4\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def widgets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with serving(APPS / "widgets.py", cwd=tmp_path_factory.mktemp("widgets")) as runner:
        yield runner


def sent(page: Page) -> Any:
    """The input as its JSON view has it."""
    page.get_by_role("tab", name="JSON").click()
    text = page.get_by_label("The input as JSON").input_value()
    page.get_by_role("tab", name="Form").click()
    return json.loads(text)


def told(page: Page) -> Any:
    """The answer as the runner gave it to the page."""
    with page.expect_response(lambda response: response.request.method == "POST" and "/cancel" not in response.url) as answer:
        run(page)
    ended(page)
    return answer.value.json()


MIDDLE = """(selector) => {
    const seen = document.querySelector(selector);
    if (!seen) return [0, 0, 0, 0]; // it is being loaded
    const copy = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const pen = copy.getContext("2d");
    pen.drawImage(seen, seen.width >> 1, seen.height >> 1, 1, 1, 0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
}"""


def painted(page: Page, selector: str) -> list[int]:
    """The pixel in the middle of a canvas: red, green, blue, alpha."""
    return list(page.evaluate(MIDDLE, selector))


# --- choices


def test_the_size_of_a_picture_is_a_shape_or_a_width_and_a_height(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/shot") as page:
        expect(page.get_by_role("radio", name="Landscape 4:3")).to_have_attribute("aria-checked", "true")
        page.get_by_role("radio", name="Portrait 16:9").click()
        assert sent(page)["image_size"] == "portrait_16_9"
        page.get_by_role("radio", name="Custom").click()  # begins as what was chosen
        page.get_by_role("button", name="Swap width and height").click()
        assert sent(page)["image_size"] == {"width": 1024, "height": 576}
        page.get_by_role("spinbutton", name="Height").fill("99999")
        run(page)
        ended(page, "Failed, 422")
        expect(page.get_by_role("spinbutton", name="Height")).to_be_focused()
        expect(page.locator(".field .error:visible")).to_have_count(1)  # and not that it is no name of a size

        page.get_by_role("tab", name="JSON").click()
        page.get_by_label("The input as JSON").fill('{"image_size": "square"}')
        page.get_by_role("tab", name="Form").click()
        expect(page.get_by_role("radio", name="Square", exact=True)).to_have_attribute("aria-checked", "true")
        assert told(page)["asked"]["image_size"] == "square"


def test_the_movement_of_a_camera_is_chosen_by_its_drawing(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/shot") as page:
        page.get_by_role("radio", name="Forward up").focus()
        page.keyboard.press("ArrowRight")  # as radio buttons go
        page.get_by_role("button", name="Add advanced camera control").click()
        page.get_by_role("radio", name="Zoom").click()
        page.get_by_label("Movement value, slider").fill("-4")
        asked = told(page)["asked"]

    assert asked["camera_control"] == "right_turn_forward"
    assert asked["advanced_camera_control"] == {"movement_type": "zoom", "movement_value": -4}


def test_a_palette_is_colours_to_add_change_and_take_out(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/shot") as page:
        for color in ("#ff0000", "#00ff00", "#0000ff"):
            page.locator(field(page, "palette")).get_by_role("button", name="Add a colour").click()
            page.locator(f"{field(page, 'palette')} input").last.fill(color)
        page.get_by_role("button", name="Remove colour 2").focus()
        page.keyboard.press("Enter")

        asked = told(page)["asked"]
        assert asked["palette"] == [{"r": 255, "g": 0, "b": 0}, {"r": 0, "g": 0, "b": 255}]
        assert asked["tint"] is None  # one that may be left out is
        page.get_by_text("More settings").click()
        tint = page.locator(field(page, "tint"))
        tint.get_by_role("button", name="Add a colour").click()
        tint.locator("input").fill("#102030")
        assert told(page)["asked"]["tint"] == {"r": 16, "g": 32, "b": 48}
        tint.get_by_role("button", name="Leave the colour out").click()
        assert told(page)["asked"]["tint"] is None


def test_an_author_says_what_is_shown_and_how(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/told") as page:
        expect(page.get_by_label("Style")).to_be_visible()
        expect(page.get_by_text("as painters call it")).to_be_visible()
        expect(page.get_by_label("Version")).to_be_hidden()  # among the other settings
        page.get_by_text("More settings").click()
        expect(page.get_by_label("Version")).to_be_disabled()
        expect(page.get_by_label("Secret")).to_have_count(0)
        expect(page.locator(f"{field(page, 'story')} textarea")).to_have_value("Once upon a time")
        page.get_by_label("Model name", exact=True).select_option("large")
        assert sent(page)["model_name"] == "large"
        page.get_by_label("Model name", exact=True).select_option("Another …")
        page.get_by_label("Model name, one's own").fill("huge")

        assert told(page)["asked"] == {"style": "fauve", "model_name": "huge", "secret": 1, "version": "v1", "story": "Once upon a time"}


def test_faults_deep_in_an_input_are_shown_at_their_fields(browser: Browser, widgets: Runner) -> None:
    scenes = [
        {"size": {"width": 0, "height": 9}, "lines": ["ok", "much too long"], "change": {"type": "fade", "seconds": 99}},
        {"size": {}, "lines": [], "change": {"type": "cut", "at": -1}},
    ]
    with looking_at(browser, f"{widgets.url}/#endpoint=/storyboard") as page:
        page.get_by_role("tab", name="JSON").click()
        page.get_by_label("The input as JSON").fill(json.dumps({"scenes": scenes}))
        run(page)
        ended(page, "Failed, 422")

        faulty = page.locator("[data-faulty]")
        assert faulty.evaluate_all("(fields) => fields.map((one) => one.dataset.name)") == ["width", "line", "seconds", "at"]
        expect(page.get_by_role("spinbutton", name="Width").first).to_be_focused()
        page.get_by_role("spinbutton", name="Width").first.fill("8")
        page.get_by_label("Line 2", exact=True).fill("short")
        page.get_by_role("spinbutton", name="Seconds", exact=True).fill("2")
        page.get_by_label("Change, kind").nth(1).select_option("Fade")
        page.get_by_role("spinbutton", name="Seconds", exact=True).nth(1).fill("1")
        expect(faulty).to_have_count(0)
        asked = told(page)["asked"]["scenes"]

    assert [scene["change"] for scene in asked] == [{"type": "fade", "seconds": 2.0}, {"type": "fade", "seconds": 1.0}]
    assert asked[0]["lines"] == ["ok", "short"]


# --- media as inputs


def test_a_model_is_uploaded_seen_and_turned(browser: Browser, widgets: Runner, tmp_path: Path) -> None:
    file = tmp_path / "shape.obj"
    file.write_text(TETRAHEDRON)
    with looking_at(browser, f"{widgets.url}/#endpoint=/scan") as page:
        page.locator("input[type=file]").set_input_files(file)
        expect(page.get_by_role("img", name="3D model, 4 triangles")).to_be_visible()
        run(page)
        ended(page)

        cube = page.locator(".shown .model canvas")
        expect(cube).to_have_attribute("aria-label", re.compile("12 triangles"))
        drawn = f"(before) => {{ const [r, g, b, a] = ({MIDDLE})('.shown .model canvas'); return a === 255 && r > 1.5 * g && String([r, g, b, a]) !== String(before); }}"
        page.wait_for_function(drawn)  # red, as its material says
        before = painted(page, ".shown .model canvas")
        cube.focus()
        for _ in range(6):
            page.keyboard.press("ArrowDown")
        page.wait_for_function(drawn, arg=before)  # its top, which has more light
        expect(page.locator(".shown .file-card")).to_contain_text("scan.mesh")
        cube.evaluate("(canvas) => canvas.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()")
        page.get_by_role("button", name="Show the model again").click()
        page.wait_for_function(drawn)


def test_files_for_a_dataset_are_packed_into_one_archive(browser: Browser, widgets: Runner) -> None:
    files: list[Any] = [{"name": name, "mimeType": "text/plain", "buffer": content} for name, content in (("a.txt", b"one"), ("a.txt", b"three"), ("é.txt", b""))]
    with looking_at(browser, f"{widgets.url}/#endpoint=/train") as page:
        page.locator("input[type=file]").set_input_files(files)
        expect(page.locator(".file-card")).to_contain_text("files.zip")
        answer = told(page)

        page.locator("input[type=file]").set_input_files([{"name": "mine.zip", "mimeType": "application/zip", "buffer": page.request.get(sent(page)["images_data_url"]["url"]).body()}])
        expect(page.locator(".file-card")).to_contain_text("mine.zip")  # as it is, not packed again
        again = told(page)

    assert answer["files"] == again["files"] == [{"name": "a.txt", "bytes": 3}, {"name": "a (2).txt", "bytes": 5}, {"name": "é.txt", "bytes": 0}]


def test_what_is_pasted_anywhere_goes_to_the_first_empty_field(browser: Browser, widgets: Runner) -> None:
    paste = """() => {
        const data = new DataTransfer();
        data.items.add(new File(["x"], "pasted.txt", { type: "text/plain" }));
        document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    with looking_at(browser, f"{widgets.url}/#endpoint=/train") as page:
        page.get_by_role("button", name="Choose files").wait_for()
        page.evaluate(paste)
        expect(page.locator(".file-card")).to_contain_text("files.zip")


def test_a_video_is_uploaded_and_plays_in_the_answer(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/watch") as page:
        page.locator("input[type=file]").set_input_files(DATA / "clip.webm")
        expect(page.locator(".preview video")).to_be_visible()
        run(page)
        ended(page)

        expect(page.locator(".shown figcaption")).to_contain_text(re.compile(r"64 . 48 . [\d.]+ s"))
        playing = page.evaluate("async () => { const video = document.querySelector('.shown video'); video.muted = true; await video.play(); return !video.paused; }")
    assert playing


def test_pictures_come_in_a_grid_are_looked_at_in_full_and_downloaded(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/pictures") as page:
        run(page)
        ended(page)

        expect(page.locator(".media.several.odd figure")).to_have_count(3)
        page.get_by_role("button", name="Look at shade-0.png in full size").click()
        expect(page.locator("#zoom img")).to_be_visible()
        page.keyboard.press("Escape")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").first.click()
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_sound_has_a_player_and_its_wave(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/sound") as page:
        run(page)
        ended(page)

        expect(page.locator(".shown audio")).to_be_visible()
        drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
        page.wait_for_function(f"() => ({drawn})(document.querySelector('.shown .wave'))")


def test_a_picture_is_taken_with_the_camera(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, widgets.url) as page:
        page.get_by_label("Prompt").fill("me")
        page.get_by_text("More settings").click()
        page.get_by_role("button", name="Take a picture").click()
        page.wait_for_function("() => document.querySelector('dialog video')?.videoWidth > 0")
        page.get_by_role("button", name="Take it").click()
        expect(page.locator(".medium[data-filled] img")).to_be_visible()
        run(page)
        ended(page)

        expect(page.locator(".tree")).to_contain_text(["pixels"])


def test_a_recording_is_made_with_the_microphone(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/hear") as page:
        page.get_by_role("button", name="Record", exact=True).click()
        expect(page.get_by_text(re.compile(r"Recording, [\d.]+"))).to_be_visible()  # something was heard
        page.get_by_role("button", name="Stop the recording").click()
        expect(page.locator(".preview audio")).to_be_visible()
        run(page)
        ended(page)

        expect(page.locator(".pairs")).to_contain_text("true")


def test_a_mask_is_painted_over_its_image(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/inpaint") as page:
        page.locator(field(page, "image_url")).locator("input[type=file]").set_input_files(EXAMPLES / "data" / "cat.jpg")
        expect(page.locator(".medium[data-filled]")).to_be_visible()
        page.get_by_role("button", name="Paint the mask").click()
        canvas = page.locator(".painted")
        page.wait_for_function("() => document.querySelector('.painted').width > 300")
        box = canvas.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 160, box["y"] + 90)
        page.mouse.up()
        page.get_by_role("button", name="Use the mask").click()
        expect(page.locator(".medium[data-filled]")).to_have_count(2)
        run(page)
        ended(page)
        page.locator(".raw summary").first.click()
        mask = page.get_by_role("link", name="Download").nth(1).get_attribute("href")

    assert mask is not None
    picture = Image.open(io.BytesIO(httpx.get(mask, trust_env=False).content)).convert("L")
    assert picture.getextrema() == (0, 255)


def test_several_pictures_are_chosen_and_one_is_taken_out(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/albums") as page:
        page.locator("input[type=file]").set_input_files([EXAMPLES / "data" / "cat.jpg"] * 3)
        expect(page.locator(".strip img")).to_have_count(3)
        page.get_by_role("button", name="Remove number 2").click()
        run(page)
        ended(page)

        page.locator(".raw > summary").click()
        expect(page.locator(".raw .tree")).to_contain_text("2 items")


# --- answers


def test_pictures_of_a_stream_take_the_place_of_the_one_before(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/develop") as page:
        run(page)
        ended(page)

        expect(page.locator(".shown img")).to_have_count(1)
        expect(page.locator(".shown figcaption")).to_contain_text(re.compile("32 . 8"))
        expect(page.locator('[data-fact="events"]')).to_contain_text("3")


def test_a_picture_with_more_light_than_a_screen_has_is_shown_with_its_exposure(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/light") as page:
        run(page)
        ended(page)
        page.get_by_label("Exposure").wait_for()
        plain = painted(page, ".hdr canvas")
        page.get_by_label("Exposure").fill("-2")
        darker = painted(page, ".hdr canvas")

    assert plain == [255, 99, 0, 255]  # 2.0 is over white; 0.125 in sRGB
    assert darker == [188, 49, 0, 255]  # 0.5 and 0.03125


def test_what_may_not_be_safe_to_look_at_is_veiled_until_asked_for(browser: Browser, widgets: Runner) -> None:
    with looking_at(browser, f"{widgets.url}/#endpoint=/unsafe") as page:
        run(page)
        ended(page)
        page.get_by_role("button", name="Hidden").click()
        expect(page.locator("#zoom")).to_be_hidden()
        page.get_by_role("button", name="Look at red.png").click()
        expect(page.locator("#zoom img")).to_be_visible()
