"""Load Dataset, end to end: real files in, the node's own execute, what comes out."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics.errors import InputError
from PIL import Image

RESOLUTION = 64
SIZE = (64, 64)
RED, BLUE = (200, 20, 10), (10, 30, 200)
TOLERANCE = 2 / 255
SETTINGS = dict(resolution=RESOLUTION, bucket_step=16, shortest_side=32, longest_side=128)


@pytest.fixture
def pictures(folders: Path) -> Path:
    """An empty folder `set` in the host's input folder."""
    folder = folders / "input" / "set"
    folder.mkdir()
    return folder


def load(folder: str = "set", **settings):
    """The node, called as the host calls it: every value in a list."""
    linked = {name: settings.pop(name, None) for name in ("images", "captions", "masks")}
    values = {name: [value] for name, value in (SETTINGS | settings).items()}
    return LoadDataset.execute(folder=[folder], **linked, **values)


def dataset_of(folder: str = "set", **settings):
    return load(folder, **settings).args[0]


def names(dataset) -> list[str]:
    return [picture.name for picture in dataset.pictures]


def pixels_of(dataset, index: int = 0) -> torch.Tensor:
    return dataset.pictures[index].load(dataset.fits()[index])


def save(folder: Path, name: str = "a.png", color=RED, size=SIZE, **options) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def noise_picture(size=(96, 64)) -> Image.Image:
    """Incompressible, so that a cut file lacks pixels and not only its end mark."""
    values = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def assert_color(pixels: torch.Tensor, color: tuple[int, int, int], tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(pixels.mean((0, 1)), torch.tensor(color) / 255.0, atol=tolerance, rtol=0)


# ---------------------------------------------------------------- what comes out


def test_pixels_come_as_float_in_their_bucket(pictures: Path) -> None:
    save(pictures)
    pixels = pixels_of(dataset_of())
    assert pixels.shape == (RESOLUTION, RESOLUTION, 3) and pixels.dtype == torch.float32
    assert_color(pixels, RED)


def test_preview_is_one_picture(pictures: Path) -> None:
    save(pictures)
    preview = load().args[1]
    assert preview.dim() == 4 and preview.shape[0] == 1 and preview.shape[3] == 3
    assert 0 <= preview.min() and preview.max() <= 1


def test_preview_shows_the_picture(pictures: Path) -> None:
    save(pictures, color=(255, 0, 255))
    preview = load().args[1][0]
    assert ((preview - torch.tensor([1.0, 0.0, 1.0])).abs().max(-1).values < TOLERANCE).sum() >= RESOLUTION**2


def test_captions_come_a_line_a_picture_with_the_trigger_word(pictures: Path) -> None:
    for name in ("a", "b"):
        save(pictures, f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"picture {name}")
    assert load(trigger_word="zwx").args[2] == "zwx, picture a\nzwx, picture b"


def test_captions_lie_in_caption_files_too(pictures: Path) -> None:
    save(pictures)
    (pictures / "a.caption").write_text("from a caption file")
    assert dataset_of().pictures[0].caption == "from a caption file"


def test_captions_lie_in_metadata_too(pictures: Path) -> None:
    save(pictures, "a.png")
    save(pictures, "b.png")
    lines = [{"file_name": "b.png", "text": "of b"}, {"file_name": "a.png", "text": "of a"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [picture.caption for picture in dataset_of().pictures] == ["of a", "of b"]


def test_metadata_in_the_root_names_pictures_in_folders(pictures: Path) -> None:
    save(pictures, "10_cat/a.png")
    (pictures / "metadata.jsonl").write_text(json.dumps({"file_name": "10_cat/a.png", "text": "a cat"}))
    assert dataset_of().pictures[0].caption == "a cat"


def test_a_sidecar_goes_before_metadata(pictures: Path) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "from metadata"}))
    (pictures / "a.txt").write_text("from the sidecar")
    assert dataset_of().pictures[0].caption == "from the sidecar"


def test_a_broken_metadata_line_is_named_and_the_rest_is_used(pictures: Path) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "good"}\n{broken')
    dataset = dataset_of()
    assert dataset.pictures[0].caption == "good"
    assert any("line 2" in problem for problem in dataset.problems)


@pytest.mark.parametrize("line", ['"text"', "7", "null", "[]", "{}", '{"file_name": "a.png", "text": 5}'])
def test_a_metadata_line_of_another_kind_is_named(pictures: Path, line: str) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_text(line)
    assert any("line 1" in problem for problem in dataset_of().problems)


def test_a_folder_called_10_name_repeats_its_pictures(pictures: Path) -> None:
    save(pictures, "10_cat/a.png")
    save(pictures, "dogs/b.png")
    assert [picture.repeats for picture in dataset_of().pictures] == [10, 1]
    assert [picture.repeats for picture in dataset_of(repeats=3).pictures] == [30, 3]


def test_the_chosen_folder_itself_may_be_called_10_name(folders: Path) -> None:
    save(folders / "input" / "10_cat")
    assert dataset_of("10_cat").pictures[0].repeats == 10


@pytest.mark.parametrize(("size", "bucket"), [((100, 100), (64, 64)), ((200, 100), (80, 48)), ((100, 200), (48, 80))])
def test_a_picture_goes_into_the_bucket_nearest_in_shape(pictures: Path, size, bucket) -> None:
    save(pictures, size=size)
    assert pixels_of(dataset_of()).shape == (bucket[1], bucket[0], 3)


def test_regularisation_pictures_are_marked(folders: Path, pictures: Path) -> None:
    save(pictures)
    save(folders / "input" / "prior", "p.png")
    dataset = dataset_of(regularisation_folder="prior", trigger_word="zwx", prior_loss_weight=0.25)
    assert [picture.is_regularisation for picture in dataset.pictures] == [False, True]
    assert [dataset.caption(0), dataset.caption(1)] == ["zwx", ""]


def test_images_come_from_the_graph(folders: Path) -> None:
    images = [torch.full((2, 64, 64, 3), 0.5), torch.full((1, 48, 80, 3), 0.25)]
    output = load("none", images=images, captions=["a\nb\nc"])
    assert output.args[2] == "a\nb\nc"
    torch.testing.assert_close(pixels_of(output.args[0], 2).mean().item(), 0.25, atol=TOLERANCE, rtol=0)


def test_one_caption_serves_all_images_from_the_graph(folders: Path) -> None:
    assert load("none", images=[torch.zeros(3, 64, 64, 3)], captions=["same"]).args[2] == "same\nsame\nsame"


def test_another_number_of_captions_than_images_is_refused(folders: Path) -> None:
    with pytest.raises(InputError, match="2 lines for 3 pictures"):
        load("none", images=[torch.zeros(3, 64, 64, 3)], captions=["a", "b"])


def test_images_from_the_graph_join_a_folder(pictures: Path) -> None:
    save(pictures)
    assert names(dataset_of(images=[torch.zeros(1, 64, 64, 3)])) == ["a.png", "image 1"]


def test_transparent_images_from_the_graph_lie_on_white(folders: Path) -> None:
    assert_color(pixels_of(dataset_of("none", images=[torch.zeros(1, 64, 64, 4)])), (255, 255, 255))


def test_a_caption_of_several_lines_is_one_line_of_the_output(pictures: Path) -> None:
    for name in ("a", "b"):
        save(pictures, f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"first of {name}\n\nsecond of {name}\n")
    lines = load().args[2]
    assert lines == "first of a second of a\nfirst of b second of b"
    images = torch.zeros(2, 64, 64, 3)
    assert load("none", images=[images], captions=[lines]).args[2] == lines


# ---------------------------------------------------------------- masks


def summary(monkeypatch: pytest.MonkeyPatch, folder: str = "set", **settings) -> str:
    """What the node shows on itself."""
    from lora_kiln.training import host

    shown: list[str] = []
    monkeypatch.setattr(host, "show_text", shown.append)
    load(folder, **settings)
    return shown[-1]


def save_mask(folder: Path, name: str = "a_mask.png", size=SIZE) -> None:
    """White on the left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(folder / name)


def test_the_sheet_dims_what_a_mask_leaves_out(pictures: Path) -> None:
    save(pictures, color=(255, 0, 255))
    save_mask(pictures)
    bright = (torch.tensor([1.0, 0.0, 1.0]) - load().args[1][0]).abs().amax(-1) < TOLERANCE
    masked = (torch.tensor([1.0, 0.0, 1.0]) - load(masked_loss=True).args[1][0]).abs().amax(-1) < TOLERANCE
    assert masked.sum() == bright.sum() / 2 > 0


def test_masks_are_counted(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        save(pictures, f"{name}.png")
    save_mask(pictures, "a_mask.png")
    save_mask(pictures, "b-masklabel.png")
    assert "3 pictures" in summary(monkeypatch) and "mask" not in summary(monkeypatch)
    assert "2 of 3 with a mask" in summary(monkeypatch, masked_loss=True)


def test_masks_come_from_the_graph(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = dict(images=[torch.ones(2, 64, 64, 3)], masks=[torch.eye(64)[None]])
    data = dataset_of("none", masked_loss=True, **linked)
    assert all(
        torch.equal(each.load_mask(fit), torch.eye(64)) for each, fit in zip(data.pictures, data.fits(), strict=True)
    )
    assert "masks are not used: masked_loss is off" in summary(monkeypatch, "none", **linked)


def test_load_images_empty_mask_is_refused_with_advice(folders: Path) -> None:
    """What the core's Load Image gives for a picture without transparency."""
    with pytest.raises(InputError, match="Invert Mask"):
        load("none", images=[torch.zeros(1, 64, 64, 3)], masks=[torch.zeros(1, 64, 64)])


# ---------------------------------------------------------------- several resolutions, folders' settings


def test_the_summary_names_resolutions_and_settings_files(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(pictures, "cats/a.png")
    (pictures / "cats" / "dataset.toml").write_text('trigger_word = "zwx"')
    said = summary(monkeypatch, extra_resolutions="96")
    assert "resolutions: 64, 96" in said and "settings from set/cats/dataset.toml" in said
    assert load().args[2] == "zwx"


def test_a_settings_file_that_is_wrong_stops_the_node(pictures: Path) -> None:
    save(pictures)
    (pictures / "dataset.toml").write_text("repeat = 3")
    with pytest.raises(InputError, match="set/dataset.toml: repeat is not known; did you mean repeats"):
        load()


def test_a_folder_for_regularisation_may_lie_in_the_chosen_one(pictures: Path) -> None:
    save(pictures, "a.png")
    save(pictures, "prior/b.png")
    (pictures / "prior" / "dataset.toml").write_text("regularisation = true")
    assert [picture.is_regularisation for picture in dataset_of().pictures] == [False, True]


# ---------------------------------------------------------------- older workflows

FIRST_INPUTS = (
    "folder images captions resolution trigger_word flip shuffle_tags keep_tokens caption_dropout repeats bucket_step "
    "shortest_side longest_side regularisation_folder prior_loss_weight bad_pictures"
).split()


def test_new_inputs_come_after_those_of_older_workflows_and_may_be_left_out(folders: Path) -> None:
    inputs = LoadDataset.define_schema().inputs
    assert [each.id for each in inputs[: len(FIRST_INPUTS)]] == FIRST_INPUTS
    new = inputs[len(FIRST_INPUTS) :]
    assert len(new) == 6 and all(each.optional for each in new)


# ---------------------------------------------------------------- a second time


def test_pictures_are_decoded_once_and_not_again_after_a_restart(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_kiln.training.data import cache

    for name in "abc":
        os.utime(save(pictures, f"{name}.png"), (1, 1))
    decoded, read = [], cache.picture_facts
    monkeypatch.setattr(cache, "picture_facts", lambda path: decoded.append(path.name) or read(path))
    first = dataset_of()
    assert decoded == ["a.png", "b.png", "c.png"]
    assert dataset_of() == first and len(decoded) == 3


def test_without_a_cache_it_reads_all_the_same(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(pictures)
    with_cache = dataset_of()
    monkeypatch.setenv("LORA_KILN_CACHE_GB", "0")
    assert dataset_of() == with_cache


# ---------------------------------------------------------------- when it runs again


def fingerprint(**inputs) -> str:
    return LoadDataset.fingerprint_inputs(**{"folder": ["set"], "regularisation_folder": ["none"], **inputs})


def test_fingerprint_is_stable(pictures: Path) -> None:
    save(pictures)
    assert fingerprint() == fingerprint()


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.jsonl", "10_x/a.txt", "dataset.toml"])
def test_fingerprint_changes_with_a_caption(pictures: Path, name: str) -> None:
    save(pictures)
    (pictures / name).parent.mkdir(exist_ok=True)
    (pictures / name).write_text("before")
    before = fingerprint()
    (pictures / name).write_text("behind")
    assert fingerprint() != before


def test_fingerprint_changes_with_a_new_picture(pictures: Path) -> None:
    save(pictures)
    before = fingerprint()
    save(pictures, "b.png")
    assert fingerprint() != before


def test_fingerprint_changes_with_a_renamed_picture(pictures: Path) -> None:
    path = save(pictures)
    before = fingerprint()
    path.rename(pictures / "b.png")
    assert fingerprint() != before


def test_fingerprint_changes_with_the_regularisation_folder(folders: Path, pictures: Path) -> None:
    save(pictures)
    save(folders / "input" / "prior", "p.png")
    before = fingerprint(regularisation_folder=["prior"])
    save(folders / "input" / "prior", "q.png")
    assert fingerprint(regularisation_folder=["prior"]) != before


def test_fingerprint_knows_nothing_of_other_files(pictures: Path) -> None:
    save(pictures)
    before = fingerprint()
    (pictures / "notes.pdf").write_text("none of the trainer's business")
    assert fingerprint() == before


# ---------------------------------------------------------------- folders that cannot be used


def test_an_empty_folder_is_refused(pictures: Path) -> None:
    with pytest.raises(InputError, match="'set' holds no picture"):
        load()


def test_a_missing_folder_is_refused(pictures: Path) -> None:
    with pytest.raises(InputError, match="'elsewhere'.*no such folder"):
        load("elsewhere")


def test_neither_folder_nor_images_is_refused(folders: Path) -> None:
    with pytest.raises(InputError, match="no images are connected"):
        load("none")


def test_a_folder_without_a_readable_picture_is_refused_with_each_reason(pictures: Path) -> None:
    (pictures / "a.png").write_bytes(b"not a picture")
    (pictures / "b.jpg").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load()
    assert "no usable picture" in str(caught.value)
    assert "a.png is not a picture" in str(caught.value) and "b.jpg is an empty file" in str(caught.value)


def test_an_empty_regularisation_folder_is_refused(folders: Path, pictures: Path) -> None:
    save(pictures)
    (folders / "input" / "prior").mkdir()
    with pytest.raises(InputError, match="'prior' holds no usable picture"):
        load(regularisation_folder="prior")


OUTSIDE = ["../..", "../outside", "set/../../outside", "/etc", "/", "..", "//etc", "../input-too"]


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_path_outside_the_allowed_roots_is_refused(folders: Path, pictures: Path, folder: str) -> None:
    save(folders / "outside")
    save(folders / "input-too")
    with pytest.raises(InputError, match="lies outside the folders that may be read"):
        load(folder)


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_regularisation_path_outside_the_allowed_roots_is_refused(pictures: Path, folder: str) -> None:
    save(pictures)
    with pytest.raises(InputError, match="regularisation_folder.*lies outside"):
        load(regularisation_folder=folder)


def test_an_absolute_path_outside_the_allowed_roots_is_refused(folders: Path, pictures: Path) -> None:
    save(folders / "outside")
    with pytest.raises(InputError, match="lies outside"):
        load(str(folders / "outside"))


@pytest.mark.parametrize("folder", ["../..", "/etc"])
def test_the_host_hears_of_a_bad_path_before_the_run(folders: Path, folder: str) -> None:
    assert "lies outside" in str(LoadDataset.validate_inputs(folder=[folder]))


def test_the_host_accepts_a_good_path(pictures: Path) -> None:
    assert LoadDataset.validate_inputs(folder=["set"], regularisation_folder=["none"]) is True


def test_an_allowed_root_may_be_read(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folders / "outside")
    monkeypatch.setenv("LORA_KILN_ROOTS", str(folders / "outside"))
    assert names(dataset_of(str(folders / "outside"))) == ["a.png"]


def test_the_list_offers_folders_of_pictures_only(folders: Path, pictures: Path) -> None:
    save(pictures, "10_cat/a.png")
    (folders / "input" / "texts").mkdir()
    (folders / "input" / "texts" / "a.txt").write_text("no picture")
    schema = LoadDataset.define_schema()
    assert next(each for each in schema.inputs if each.id == "folder").options == ["none", "set", "set/10_cat"]


# ---------------------------------------------------------------- files that cannot be used


def problems_beside_a_good_one(pictures: Path) -> str:
    """Loads the folder with one good picture more; only that one comes through. Gives what was said."""
    save(pictures, "good.png")
    dataset = dataset_of()
    assert names(dataset) == ["good.png"]
    return "\n".join(dataset.problems)


FORMATS = ["png", "jpg", "webp", "bmp", "tif", "gif", "avif"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_file_is_left_out_with_a_reason(pictures: Path, ending: str, share: float) -> None:
    path = pictures / f"cut.{ending}"
    noise_picture().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    said = problems_beside_a_good_one(pictures)
    assert "cut." in said and ("copy it again" in said or "not a picture" in said)


def test_a_zero_byte_file_is_left_out_with_a_reason(pictures: Path) -> None:
    (pictures / "zero.png").write_bytes(b"")
    assert "zero.png is an empty file" in problems_beside_a_good_one(pictures)


def test_a_picture_with_a_damaged_chunk_is_left_out_with_a_reason(pictures: Path) -> None:
    path = pictures / "hurt.png"
    noise_picture().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    data[at + 200 : at + 220] = bytes(20)
    path.write_bytes(data)
    assert "hurt.png" in problems_beside_a_good_one(pictures)


def test_a_damaged_avif_is_left_out_with_a_reason(pictures: Path) -> None:
    """Pillow has a kind of error of its own for these."""
    path = pictures / "hurt.avif"
    noise_picture().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat")
    data[at + 4 : at + 44] = bytes(40)
    path.write_bytes(data)
    assert "hurt.avif" in problems_beside_a_good_one(pictures)


def test_a_1_pixel_picture_is_left_out_with_a_reason(pictures: Path) -> None:
    save(pictures, "dot.png", size=(1, 1))
    assert "dot.png is 1 x 1 pixels: at least" in problems_beside_a_good_one(pictures)


def test_a_1_pixel_image_from_the_graph_is_refused(folders: Path) -> None:
    with pytest.raises(InputError, match="1 x 1 pixels"):
        load("none", images=[torch.zeros(1, 1, 1, 3)])


@pytest.mark.parametrize("size", [(30_000, 64), (64, 30_000)])
def test_a_30000_pixel_long_picture_is_cut_to_the_longest_bucket(pictures: Path, size) -> None:
    save(pictures, size=size)
    pixels = pixels_of(dataset_of())
    assert max(pixels.shape[:2]) == 128 and min(pixels.shape[:2]) == 32
    assert_color(pixels, RED)


def one_bit_png(side: int) -> bytes:
    """A real, whole PNG of side x side black pixels; compressed as it is made, so that it costs no memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, packed = zlib.compressobj(1), io.BytesIO()
    row = bytes(1 + (side + 7) // 8)
    for _ in range(side):
        packed.write(packer.compress(row))
    packed.write(packer.flush())
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed.getvalue()) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [16_000, 30_000])
def test_a_picture_too_large_to_decode_is_left_out_with_a_reason(pictures: Path, side: int) -> None:
    (pictures / "huge.png").write_bytes(one_bit_png(side))
    said = problems_beside_a_good_one(pictures)
    assert "huge.png" in said and "cale it down" in said


def test_a_caption_in_another_encoding_is_named(pictures: Path) -> None:
    save(pictures, "cafe.png")
    (pictures / "cafe.txt").write_bytes("un café".encode("latin-1"))
    assert "cafe.txt is not UTF-8 text (byte 6)" in problems_beside_a_good_one(pictures)


def test_metadata_in_another_encoding_is_named(pictures: Path) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "café"}'.encode("latin-1"))
    assert any("metadata.jsonl is not UTF-8" in problem for problem in dataset_of().problems)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_in_unicode_is_read(pictures: Path, encoding: str) -> None:
    save(pictures)
    (pictures / "a.txt").write_text("un café, 猫\n", encoding=encoding)
    assert dataset_of().pictures[0].caption == "un café, 猫"


def test_bad_pictures_stop_the_node_where_that_is_asked(pictures: Path) -> None:
    save(pictures, "good.png")
    (pictures / "zero.png").write_bytes(b"")
    with pytest.raises(InputError, match="zero.png is an empty file"):
        load(bad_pictures="stop")


def test_what_was_left_out_stands_in_the_dataset_once_a_file(pictures: Path) -> None:
    save(pictures, "good.png")
    for name in ("x.png", "y.png"):
        (pictures / name).write_bytes(b"nothing")
    assert len(dataset_of().problems) == 2


# ---------------------------------------------------------------- files of unusual kinds, which can be used


def test_cmyk(pictures: Path) -> None:
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(pictures / "a.jpg", quality=95)
    red = pixels_of(dataset_of()).mean((0, 1))
    assert red[0] > 0.8 and red[1] < 0.2 and red[2] < 0.2


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey(pictures: Path, ending: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (64, 1))).save(pictures / f"a.{ending}")
    row = pixels_of(dataset_of())[32, :, 0]
    torch.testing.assert_close(row, torch.linspace(0, 1, 64), atol=0.03, rtol=0)


def test_16_bit_grey_that_is_nearly_black_stays_so(pictures: Path) -> None:
    Image.fromarray(np.full((64, 64), 200, dtype=np.uint16)).save(pictures / "a.png")
    assert_color(pixels_of(dataset_of()), (1, 1, 1))


def test_16_bit_color(pictures: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">HHH", *(value * 257 for value in RED)) * SIZE[0]
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * SIZE[1])) + chunk(b"IEND", b"")
    (pictures / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert_color(pixels_of(dataset_of()), RED)


def test_one_bit(pictures: Path) -> None:
    Image.new("1", SIZE, 1).save(pictures / "a.png")
    assert_color(pixels_of(dataset_of()), (255, 255, 255))


def half_transparent_palette(path: Path) -> None:
    image = Image.new("P", SIZE, 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 64))
    image.save(path, transparency=1)


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palette_with_alpha_lies_on_white(pictures: Path, ending: str) -> None:
    half_transparent_palette(pictures / f"a.{ending}")
    pixels = pixels_of(dataset_of())
    assert_color(pixels[:, :28], RED)
    assert_color(pixels[:, 36:], (255, 255, 255))


def test_half_transparent_pixels_are_mixed_with_white(pictures: Path) -> None:
    Image.new("RGBA", SIZE, (*RED, 128)).save(pictures / "a.png")
    assert_color(pixels_of(dataset_of()), tuple(round((value + 255) / 2) for value in RED))


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_taken(pictures: Path, ending: str) -> None:
    frames = [Image.new("RGB", SIZE, color) for color in (RED, BLUE, (0, 0, 0))]
    frames[0].save(pictures / f"a.{ending}", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert len(dataset_of().pictures) == 1
    assert_color(pixels_of(dataset_of()), RED)


TRANSPOSED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how the upright picture is turned to be stored"""


@pytest.mark.parametrize("orientation", TRANSPOSED)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_an_exif_rotated_picture_stands_upright(pictures: Path, ending: str, orientation: int) -> None:
    upright = Image.new("RGB", (80, 48), RED)
    upright.paste(BLUE, (0, 0, 20, 20))
    turn = TRANSPOSED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    stored.save(pictures / f"a.{ending}", exif=exif, quality=95)
    dataset = dataset_of()
    pixels = pixels_of(dataset)
    assert (dataset.pictures[0].width, dataset.pictures[0].height) == (80, 48)
    assert_color(pixels[2:14, 2:14], BLUE, 0.05)
    assert_color(pixels[26:, 26:], RED, 0.05)


def test_an_unknown_exif_orientation_turns_nothing(pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    save(pictures, "a.jpg", size=(80, 48), exif=exif)
    assert (dataset_of().pictures[0].width, dataset_of().pictures[0].height) == (80, 48)


def test_a_lab_tiff_is_used_or_left_out_with_a_reason(pictures: Path) -> None:
    Image.new("LAB", SIZE, (128, 128, 128)).save(pictures / "lab.tif")
    save(pictures, "good.png")
    dataset = dataset_of()
    assert "lab.tif" in names(dataset) or any("lab.tif" in problem for problem in dataset.problems)


def test_a_picture_by_another_ending_is_read(pictures: Path) -> None:
    Image.new("RGB", SIZE, RED).save(pictures / "a.jpg", format="PNG")
    assert_color(pixels_of(dataset_of()), RED)


def test_endings_in_capitals_are_read(pictures: Path) -> None:
    save(pictures, "A.PNG")
    assert names(dataset_of()) == ["A.PNG"]


def test_hidden_files_are_left_alone(pictures: Path) -> None:
    save(pictures, "a.png")
    (pictures / "._a.png").write_bytes(b"what macOS leaves behind")
    assert names(dataset_of()) == ["a.png"] and not dataset_of().problems


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("resolution", 0),
        ("bucket_step", 7),
        ("caption_dropout", 1.5),
        ("prior_loss_weight", -1.0),
        ("keep_tokens", -1),
        ("shortest_side", 256),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(pictures: Path, setting: str, value) -> None:
    save(pictures)
    with pytest.raises(InputError, match=setting):
        load(**{setting: value})


def test_no_bucket_side_lies_outside_the_limits(pictures: Path) -> None:
    save(pictures, size=(100, 100))
    pixels = pixels_of(dataset_of(resolution=256, longest_side=128))
    assert max(pixels.shape[:2]) <= 128
