"""The dataset on the page, in a real browser and over HTTP: files dropped, captions edited and saved."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from host import Server

SHEET = ".kiln-dataset .kiln-card"
FIELDS = ".kiln-editor textarea"
HTML = "<img src=x onerror=window.pwned=1>"
ADD = """folder => {
  const node = window.LiteGraph.createNode('KilnLoadDataset');
  node.pos = [300, 60];
  window.app.graph.add(node);
  const widget = node.widgets.find(widget => widget.name === 'folder');
  widget.value = folder;
  widget.callback?.(folder);
  Object.assign(window.app.canvas.ds, {scale: 1, offset: [0, 0]});
  window.app.canvas.setDirty(true, true);
}"""
CHOOSE = """folder => {
  const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'folder');
  widget.value = folder;
  widget.callback?.(folder);
}"""
FOLDER = """() => {
  const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'folder');
  return [widget.value, widget.options.values.includes(widget.value)];
}"""


@pytest.fixture
def cats(server: Server, request: pytest.FixtureRequest) -> Path:
    """A folder of its own in the server's input folder: three pictures, two with captions."""
    folder = server.workspace / "input" / re.sub(r"\W+", "_", request.node.name)
    folder.mkdir()
    for number, caption in enumerate(["a cat, red, on grass", "a dog, red", None]):
        draw(folder / f"{number}.png", color=(80 * number, 90, 200))
        if caption is not None:
            (folder / f"{number}.txt").write_text(caption)
    return folder


def draw(path: Path, size=(640, 400), color=(200, 20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def open_node(page, server: Server, folder: str, vue: bool = False) -> None:
    page.goto(server.url)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=60_000)
    page.wait_for_function("window.app.extensions.some(extension => extension.name === 'lora-kiln')")
    page.evaluate(
        """async vue => {
          await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue);
          window.app.graph.clear();
        }""",
        vue,
    )
    page.evaluate(ADD, folder)
    page.wait_for_selector(".kiln-dataset")


def open_editor(page, server: Server, folder: Path) -> None:
    open_node(page, server, folder.name)
    page.wait_for_selector(SHEET)
    page.click("text=Edit captions…")
    page.wait_for_selector(FIELDS)


def captions(page) -> list[str]:
    return page.eval_on_selector_all(FIELDS, "fields => fields.map(field => field.value)")


def saved(folder: Path) -> list[str | None]:
    files = [folder / f"{number}.txt" for number in range(3)]
    return [file.read_text("utf-8").strip() if file.exists() else None for file in files]


def save(page) -> None:
    page.locator(".kiln-editor").get_by_text("Save captions").click()
    page.locator(".kiln-editor .kiln-dot").wait_for(state="hidden")


# ---------------------------------------------------------------- the sheet


@pytest.mark.parametrize("vue", [False, True])
def test_the_node_shows_the_pictures_as_they_will_be_trained(page, server: Server, cats: Path, vue: bool):
    draw(cats / "small.png", (90, 80))
    (cats / "copy.png").write_bytes((cats / "0.png").read_bytes())
    (cats / "broken.png").write_bytes(b"nothing")
    open_node(page, server, cats.name, vue)
    page.wait_for_selector(SHEET)
    cards = {card.get_attribute("data-name"): card.text_content() for card in page.locator(SHEET).all()}
    assert list(cards) == ["0.png", "1.png", "2.png", "copy.png", "small.png"]
    assert "a cat, red, on grass" in cards["0.png"] and "no caption" in cards["2.png"]
    assert "too small" in cards["small.png"] and "same as" in cards["copy.png"] + cards["0.png"]
    bucket = page.locator(SHEET).nth(1).locator(".kiln-meta span").first.text_content()
    width, height = map(int, bucket.split(" × "))
    assert width % 64 == height % 64 == 0 and width > height
    page.wait_for_function(f"document.querySelector('{SHEET} img').naturalWidth > 0")
    assert "1 file left out" in page.inner_text(".kiln-problems")
    box = page.locator(".kiln-sheet").bounding_box()
    assert box["width"] > 200 and box["height"] > 100


def test_regularisation_pictures_stand_in_the_sheet_too(page, server: Server, cats: Path):
    base = draw(server.workspace / "input" / f"{cats.name}_base" / "old.png").parent
    open_node(page, server, cats.name)
    page.wait_for_selector(SHEET)
    hides_hosts = "window.app.graph.nodes[0].hideOutputImages"
    assert page.evaluate(hides_hosts) is True
    page.evaluate(
        """folder => {
          const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'regularisation_folder');
          widget.value = folder;
          widget.callback?.(folder);
        }""",
        base.name,
    )
    old = page.locator(f"{SHEET}[data-name='old.png']")
    old.wait_for()
    assert page.locator(SHEET).count() == 4
    assert "regularisation" in old.inner_text() and "1 for regularisation" in page.inner_text(".kiln-status")
    old.click()
    assert page.locator(FIELDS).count() == 1  # its own folder's captions
    assert base.name in page.inner_text(".kiln-editor h2")
    page.keyboard.press("Escape")
    page.evaluate(
        """() => {
          const source = window.LiteGraph.createNode('LoadImage');
          window.app.graph.add(source);
          source.connect(0, window.app.graph.nodes[0], 'images');
        }"""
    )
    assert page.evaluate(hides_hosts) is False
    page.evaluate("window.app.graph.remove(window.app.graph.nodes[1])")
    assert page.evaluate(hides_hosts) is True
    page.evaluate(CHOOSE, "none")
    page.locator(".kiln-hint").wait_for()
    assert page.evaluate(hides_hosts) is False  # pictures over a wire are shown by the host alone


def test_the_nodes_settings_change_the_buckets(page, server: Server, cats: Path):
    open_node(page, server, cats.name)
    page.wait_for_selector(SHEET)
    before = page.text_content(f"{SHEET} .kiln-meta")
    page.evaluate(
        """() => {
          const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'resolution');
          widget.value = 256;
          widget.callback?.(256);
        }"""
    )
    page.wait_for_function(f"before => document.querySelector('{SHEET} .kiln-meta').textContent !== before", arg=before)
    assert "too small" not in page.text_content(SHEET)


def test_what_a_run_said_goes_when_a_setting_changes(page, server: Server, cats: Path):
    open_node(page, server, cats.name)
    page.wait_for_selector(SHEET)
    texts = "() => window.app.graph.nodes[0].widgets.filter(widget => widget.name === '$$node-text-preview').length"
    page.evaluate(
        """() => window.app.api.dispatchCustomEvent(
             'progress_text', {nodeId: String(window.app.graph.nodes[0].id), text: 'buckets: 640x384 (3)'})"""
    )
    page.wait_for_function(f"({texts})() === 1")
    set_widget = """() => {
      const widget = window.app.graph.nodes[0].widgets.find(widget => widget.name === 'resolution');
      widget.value = 256;
      widget.callback?.(256);
    }"""
    page.evaluate(set_widget)
    assert page.evaluate(texts) == 0


def test_a_run_queued_with_unsaved_captions_warns(page, server: Server, cats: Path):
    open_editor(page, server, cats)
    page.locator(FIELDS).first.fill("a cat, blue")
    page.keyboard.press("Escape")
    bar = page.locator(".kiln-dataset .kiln-save")
    assert "queued without" not in bar.inner_text()
    page.evaluate("() => void window.app.queuePrompt(0).catch(() => {})")
    page.get_by_text(f"1 caption of {cats.name} not saved: this run reads the captions on disk.").wait_for()
    assert "The run was queued without these edits" in bar.inner_text()
    page.locator(".kiln-dataset").get_by_text("Save captions").dispatch_event("click")
    bar.wait_for(state="hidden")
    assert saved(cats)[0] == "a cat, blue"
    page.click("text=Edit captions…")
    page.locator(FIELDS).first.fill("a cat, green")
    page.keyboard.press("Escape")
    assert "queued without" not in bar.inner_text()


def test_the_view_is_saved_neither_in_the_prompt_nor_in_the_workflow(page, server: Server, cats: Path):
    open_node(page, server, cats.name)
    page.wait_for_selector(SHEET)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt())")
    assert "kiln_dataset" not in json.dumps(prompt)
    values = prompt["workflow"]["nodes"][0]["widgets_values"]
    assert values[0] == cats.name and len([value for value in values if value is not None]) == 19


def test_many_pictures_are_painted_as_far_as_one_looks(page, server: Server, cats: Path):
    for number in range(300):
        draw(cats / f"more{number:03}.png", (64, 64), (number % 256, number // 256, 7))
    open_editor(page, server, cats)
    some = page.locator(FIELDS).count()
    assert 0 < some < 303
    for _ in range(10):
        page.evaluate("document.querySelector('.kiln-cards').scrollTop = 1e9")
        page.wait_for_timeout(200)
    assert page.locator(FIELDS).count() == 303


# ---------------------------------------------------------------- files from outside


def drop(page, paths: list[Path], selector: str) -> None:
    """What a person's drag from the desktop sends."""
    box = page.locator(selector).bounding_box()
    at = dict(x=box["x"] + box["width"] / 2, y=box["y"] + box["height"] / 2)
    data = dict(items=[], files=[str(path) for path in paths], dragOperationsMask=1)
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", dict(type=kind, data=data, **at))


def test_a_dropped_folder_becomes_a_dataset_and_is_chosen(page, server: Server, tmp_path: Path):
    outside = tmp_path / "my dogs"
    draw(outside / "a.png")
    draw(outside / "10_close" / "b.jpg")
    (outside / "a.txt").write_text("a dog")
    (outside / "notes.pdf").write_bytes(b"%PDF")
    for expected in ("my dogs", "my dogs-2"):
        open_node(page, server, "none")
        drop(page, [outside], ".kiln-sheet")
        page.wait_for_selector(".kiln-upload:not([hidden])")
        assert "2 pictures, 1 caption, 1 other file left out" in page.inner_text(".kiln-upload")
        page.click(".kiln-upload button[type=submit]")
        page.wait_for_selector(SHEET)
        assert page.evaluate(FOLDER) == [expected, True]
        made = server.workspace / "input" / expected
        found = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
        assert found == ["10_close/b.jpg", "a.png", "a.txt"]
        assert page.locator(SHEET).count() == 2
    assert not list((server.workspace / "input").glob(".kiln-upload-*"))


def test_files_dropped_beside_the_view_count_too(page, server: Server, tmp_path: Path):
    open_node(page, server, "none")
    content = base64.b64encode(draw(tmp_path / "a.png").read_bytes()).decode()
    taken = page.evaluate(
        """content => {
          const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], 'a.png'));
          const event = new DragEvent('drop', {dataTransfer});
          const node = window.app.graph.nodes[0];
          return node.onDragOver(event) && node.onDragDrop(event);
        }""",
        content,
    )
    assert taken is True
    page.wait_for_selector(".kiln-upload:not([hidden])")
    page.click(".kiln-upload >> text=Cancel")
    assert page.locator(".kiln-upload").is_hidden()


def test_chosen_files_become_a_dataset_of_the_name_given(page, server: Server, tmp_path: Path):
    files = [draw(tmp_path / "a.png"), tmp_path / "a.caption", tmp_path / "bad.png"]
    files[1].write_text("a caption")
    files[2].write_bytes(b"nothing")
    open_node(page, server, "none")
    page.set_input_files(".kiln-dataset input[type=file]:not([webkitdirectory])", files)
    page.fill(".kiln-upload input", "chosen: files?")
    page.keyboard.press("Enter")
    page.wait_for_selector(SHEET)
    assert page.evaluate(FOLDER) == ["chosen_ files_", True]
    page.wait_for_function("document.querySelector('.kiln-notice').textContent.includes('bad.png')")
    with page.expect_response(lambda answer: "/kiln/dataset?" in answer.url):
        page.evaluate("window.app.api.dispatchEvent(new CustomEvent('execution_success'))")
    page.wait_for_timeout(300)  # for what is painted after that
    assert "bad.png" in page.inner_text(".kiln-notice"), "it stays told when the folder is looked at again"
    assert "a caption" in page.text_content(SHEET)
    page.evaluate(CHOOSE, "none")
    page.wait_for_selector(".kiln-notice", state="hidden")


# ---------------------------------------------------------------- captions


def test_an_edited_caption_is_saved_when_it_is_said(page, server: Server, cats: Path):
    open_editor(page, server, cats)
    page.locator(FIELDS).nth(2).fill("a bird, café")
    assert page.inner_text(".kiln-editor .kiln-dot") == "● 1 unsaved"
    assert saved(cats)[2] is None
    save(page)
    assert saved(cats) == ["a cat, red, on grass", "a dog, red", "a bird, café"]
    page.click(".kiln-editor >> text=Close")
    assert "a bird, café" in page.locator(SHEET).nth(2).text_content()


def test_search_replace_and_tags_go_over_the_whole_set_and_can_be_undone(page, server: Server, cats: Path):
    open_editor(page, server, cats)
    first = captions(page)
    page.fill(".kiln-editor [placeholder=find]", "RED")
    assert page.inner_text(".kiln-found") == "2 places in 2 captions"
    page.fill(".kiln-editor [placeholder='replace by']", "blue")
    page.click("text=Replace all")
    page.fill(".kiln-editor [placeholder=find]", "")
    replaced = ["a cat, blue, on grass", "a dog, blue", ""]
    assert captions(page) == replaced
    assert "blue" in page.inner_text(".kiln-tags") and "red" not in page.inner_text(".kiln-tags")
    page.click("[aria-label='remove blue']")
    assert captions(page) == ["a cat, on grass", "a dog", ""]
    page.locator(FIELDS).nth(1).focus()
    page.keyboard.press("Control+z")
    assert captions(page) == replaced
    page.keyboard.press("Control+z")
    assert captions(page) == first
    page.keyboard.press("Control+Shift+z")
    assert captions(page) == replaced
    save(page)
    assert saved(cats) == ["a cat, blue, on grass", "a dog, blue", None]
    assert page.evaluate("window.app.graph.nodes.length") == 1  # the graph's own undo did not listen


def test_typing_is_undone_field_by_field(page, server: Server, cats: Path):
    open_editor(page, server, cats)
    first = captions(page)
    for number in (0, 1):
        page.locator(FIELDS).nth(number).focus()
        page.keyboard.press("End")
        page.keyboard.type(", x")
    page.keyboard.press("Control+z")
    assert captions(page) == [first[0] + ", x", *first[1:]]
    page.keyboard.press("Control+z")
    assert captions(page) == first


def test_text_from_files_is_only_text(page, server: Server, cats: Path):
    draw(cats / "<img src=x onerror=window.pwned=1>.png")
    for file in (cats / "0.txt", cats / f"{HTML}.txt"):
        file.write_text(f"{HTML}, tag")
    (cats / "<img src=x onerror=window.pwned=1> bad.png").write_bytes(b"nothing")
    open_editor(page, server, cats)
    assert f"{HTML}, tag" in captions(page)
    assert HTML in page.inner_text(".kiln-tags")
    page.locator(FIELDS).nth(1).fill(HTML)
    page.click(".kiln-editor >> text=Close")
    page.click(".kiln-problems summary")
    assert HTML in page.inner_text(".kiln-problems") and HTML in page.text_content(".kiln-sheet")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src=x]").count() == 0


def test_edits_stay_while_another_folder_is_shown(page, server: Server, cats: Path):
    draw(server.workspace / "input" / "others" / "x.png")
    open_editor(page, server, cats)
    page.locator(FIELDS).nth(0).fill("mine")
    page.click(".kiln-editor >> text=Close")
    page.evaluate(CHOOSE, "others")
    page.wait_for_selector(f"{SHEET}[data-name='x.png']")
    assert f"1 unsaved in {cats.name}" in page.inner_text(".kiln-status")
    page.evaluate(CHOOSE, cats.name)
    page.wait_for_selector(f"{SHEET}[data-name='0.png']")
    assert "mine" in page.text_content(SHEET) and "unsaved" in page.text_content(SHEET)
    page.click(".kiln-dataset >> text=Save captions")
    page.locator(".kiln-dataset .kiln-dot").wait_for(state="hidden")
    assert saved(cats)[0] == "mine"


def test_a_page_with_unsaved_edits_asks_before_it_goes(page, server: Server, cats: Path):
    open_editor(page, server, cats)
    page.locator(FIELDS).nth(0).click()
    page.keyboard.type("mine")
    with page.expect_event("dialog") as dialog:
        page.close(run_before_unload=True)
    assert dialog.value.type == "beforeunload"
    dialog.value.dismiss()


@pytest.mark.parametrize("whose", ["mine", "theirs"])
def test_a_caption_that_changed_on_disk_waits_for_a_decision(page, server: Server, whose: str, tmp_path: Path):
    folder = server.workspace / "input" / f"conflict_{whose}"
    draw(folder / "0.png")
    (folder / "0.txt").write_text("first")
    open_editor(page, server, folder)
    page.locator(FIELDS).fill("mine")
    (folder / "0.txt").write_text("theirs")
    page.locator(".kiln-editor").get_by_text("Save captions").click()
    page.wait_for_selector(".kiln-editor .kiln-notice:not([hidden])")
    assert "0.png" in page.inner_text(".kiln-editor .kiln-notice") and saved(folder)[0] == "theirs"
    page.locator(".kiln-editor").get_by_text("Overwrite with mine" if whose == "mine" else "Take those on disk").click()
    page.locator(".kiln-editor .kiln-dot").wait_for(state="hidden")
    assert captions(page) == [whose] and saved(folder)[0] == whose


# ---------------------------------------------------------------- over HTTP


def answer_to(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, body, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


def multipart(*parts: bytes) -> bytes:
    begin = b'--b\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
    return b"".join(begin + part + b"\r\n" for part in parts) + b"--b--\r\n"


UPLOAD = "/api/kiln/dataset/upload?name=over_http"
MULTIPART = "multipart/form-data; boundary=b"


def test_a_folder_outside_is_refused_over_http(server: Server):
    for path in ("dataset?folder=..", "dataset?folder=/etc", "thumbnail?folder=../output&name=a.png", "dataset"):
        status, answer = answer_to(server, f"/kiln/{path}")
        assert status == 400 and "folder" in answer["error"]


def test_a_thumbnail_is_a_picture_that_may_be_kept(server: Server, cats: Path):
    with urllib.request.urlopen(f"{server.url}/api/kiln/thumbnail?folder={cats.name}&name=0.png&side=64") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg" and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.read(3) == b"\xff\xd8\xff"
    assert answer_to(server, f"/kiln/thumbnail?folder={cats.name}&name=../x.png")[0] == 404


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ("{}", "text/plain", 415),
        ("{}", "application/x-www-form-urlencoded", 415),
        ("{", "application/json", 400),
        ("[]", "application/json", 400),
        ("[" * 100_000, "application/json", 400),
        ('{"folder": "..", "captions": []}', "application/json", 400),
    ],
)
def test_captions_come_as_json_or_not_at_all(server: Server, body: str, kind: str, status: int):
    answered, answer = answer_to(server, "/api/kiln/dataset/captions", body.encode(), Content_Type=kind)
    assert answered == status and answer["error"]


def test_another_sites_form_cannot_upload(server: Server, tmp_path: Path):
    picture = draw(tmp_path / "a.png").read_bytes()
    body = multipart(b'["a.png"]', picture)
    assert answer_to(server, UPLOAD, body, Content_Type=MULTIPART)[0] == 415
    assert answer_to(server, UPLOAD, body, Content_Type=MULTIPART, X_Kiln="1", Sec_Fetch_Site="cross-site")[0] == 403
    assert not (server.workspace / "input" / "over_http").exists()
    status, answer = answer_to(server, UPLOAD, body, Content_Type=MULTIPART, X_Kiln="1")
    assert (status, answer["pictures"]) == (200, 1)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"no multipart", multipart(), multipart(b"{"), multipart(b"[1]", b"x"), multipart(b'["a.png"]')),
        *(multipart(b'["a.png", "b.png"]', b"x"), multipart(b"[" * 100_000), multipart(b'["a.png"]', b"x")),
        *(
            multipart(json.dumps(["a.png"] * 10_001).encode()),
            multipart(b'["../a.png"]', b"x"),
            multipart(b"\xff", b"x"),
        ),
    ],
)
def test_an_upload_that_makes_no_sense_leaves_nothing(server: Server, body: bytes):
    before = sorted((server.workspace / "input").iterdir())
    status, answer = answer_to(server, UPLOAD, body, Content_Type=MULTIPART, X_Kiln="1")
    assert 400 <= status < 500 and answer["error"]
    assert sorted((server.workspace / "input").iterdir()) == before
