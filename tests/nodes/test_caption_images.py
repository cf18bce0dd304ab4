"""Caption Images: which pictures get a caption, and which files it may touch. The model is a tiny random BLIP."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch
import transformers
from lora_kiln.nodes.caption_images import KEEP, NEW_FILES, OVERWRITE, UNCAPTIONED, CaptionImages
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics.errors import InputError
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = "[PAD] [UNK] [CLS] [SEP] a red blue star on the ground".split()
TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


@pytest.fixture(scope="module")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/captioners with one model, `blip`."""
    folder = tmp_path_factory.mktemp("models") / "captioners"
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    text = dict(
        **TINY, vocab_size=len(WORDS), encoder_hidden_size=16, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, sep_token_id=3,
    )  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=dict(**TINY, image_size=32, patch_size=16))
    torch.manual_seed(1)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder / "blip")
    images = transformers.BlipImageProcessor(size=dict(height=32, width=32))
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder / "blip")
    return folder


@pytest.fixture
def pictures(folders: Path, captioners: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures: `bare`, `mine` with a person's caption beside it, `meta` with one in metadata.jsonl."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "captioners", ([str(captioners)], set()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = folders / "input" / "set"
    folder.mkdir()
    for number, name in enumerate(("bare", "meta", "mine")):
        Image.new("RGB", (64, 64), (80 * number, 20, 90)).save(folder / f"{name}.png")
    (folder / "mine.txt").write_text("my own words")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "meta.png", "text": "metadata's words"}))
    return folder


def dataset():
    sizes = dict(resolution=[64], bucket_step=[16], shortest_side=[32], longest_side=[128])
    return LoadDataset.execute(folder=["set"], **sizes).args[0]


def caption(which: str = UNCAPTIONED, write_files: str = KEEP, **settings):
    values = dict(prefix="", suffix="", trigger_word="", prompt="", max_new_tokens=5, num_beams=1)
    return CaptionImages.execute(dataset(), "blip", which, write_files, **{**values, **settings}).args


def texts(captioned) -> list[str]:
    return [picture.caption for picture in captioned.pictures]


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


def test_pictures_without_caption_get_one(pictures: Path) -> None:
    bare, *others = texts(caption()[0])
    assert bare and set(bare.split()) <= set(WORDS)
    assert others == ["metadata's words", "my own words"]


def test_all_pictures_get_one_where_that_is_asked(pictures: Path) -> None:
    assert not {"", "my own words", "metadata's words"} & set(texts(caption("all")[0]))


def test_captions_come_out_a_line_a_picture(pictures: Path) -> None:
    captioned, lines = caption()
    assert lines.split("\n") == texts(captioned)


def test_prefix_suffix_and_trigger_word_stand_in_the_caption(pictures: Path) -> None:
    bare = texts(caption(prefix="photo of ", suffix=", indoors", trigger_word="zwx")[0])[0]
    assert bare.startswith("zwx, photo of ") and bare.endswith(", indoors")


def test_no_file_is_written_unless_asked(pictures: Path) -> None:
    caption("all")
    assert files(pictures) == {"mine.txt": "my own words"}


def test_captions_are_written_beside_the_pictures(pictures: Path) -> None:
    captioned = caption(write_files=NEW_FILES)[0]
    assert files(pictures)["bare.txt"].strip() == captioned.pictures[0].caption
    assert texts(dataset()) == texts(captioned)


def test_a_persons_caption_file_is_not_written_over(pictures: Path) -> None:
    caption("all", NEW_FILES)
    assert files(pictures)["mine.txt"] == "my own words"


def test_a_persons_caption_in_metadata_is_not_hidden_by_a_new_file(pictures: Path) -> None:
    caption("all", NEW_FILES)
    assert dataset().pictures[1].caption == "metadata's words"


def test_files_are_written_over_where_that_is_asked(pictures: Path) -> None:
    captioned = caption("all", OVERWRITE)[0]
    assert texts(dataset()) == texts(captioned)


def test_the_dataset_that_came_in_stays_as_it_was(pictures: Path) -> None:
    before = dataset()
    values = dict(prefix="", suffix="", trigger_word="", prompt="", max_new_tokens=5, num_beams=1)
    CaptionImages.execute(before, "blip", "all", KEEP, **values)
    assert before == dataset()


def test_without_anything_to_caption_no_model_is_loaded(pictures: Path) -> None:
    (pictures / "bare.txt").write_text("something")
    values = dict(prefix="", suffix="", trigger_word="", prompt="", max_new_tokens=5, num_beams=1)
    output = CaptionImages.execute(dataset(), "no such model", UNCAPTIONED, KEEP, **values)
    assert texts(output.args[0]) == ["something", "metadata's words", "my own words"]


@pytest.mark.parametrize("model", ["../../etc", "/etc", "blip/../../x"])
def test_a_model_outside_the_captioners_folder_is_refused(pictures: Path, model: str) -> None:
    assert "captioner is" in str(CaptionImages.validate_inputs(captioner=model))
    with pytest.raises(InputError, match="captioner is"):
        CaptionImages.execute(dataset(), model, "all", KEEP)


@pytest.mark.parametrize("model", ["blip", "Salesforce/blip-image-captioning-base", None])
def test_the_host_accepts_a_good_model(pictures: Path, model: str | None) -> None:
    assert CaptionImages.validate_inputs(captioner=model) is True


def test_the_list_offers_local_models_first(pictures: Path) -> None:
    options = next(each for each in CaptionImages.define_schema().inputs if each.id == "captioner").options
    assert options[0] == "blip" and "Salesforce/blip-image-captioning-base" in options


# ---------------------------------------------------------------- folders that may only be read


@pytest.fixture
def outside(folders: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the input folder that LORA_KILN_ROOTS allows, with one picture."""
    folder = folders / "outside"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    monkeypatch.setenv("LORA_KILN_ROOTS", str(folder))
    return folder


def caption_outside(outside: Path, write_files: str):
    sizes = dict(resolution=[64], bucket_step=[16], shortest_side=[32], longest_side=[128])
    data = LoadDataset.execute(folder=[str(outside)], **sizes).args[0]
    values = dict(prefix="", suffix="", trigger_word="", prompt="", max_new_tokens=5, num_beams=1)
    return CaptionImages.execute(data, "blip", "all", write_files, **values).args


@pytest.mark.parametrize("write_files", [NEW_FILES, OVERWRITE])
def test_a_root_that_may_be_read_may_not_be_written(outside: Path, write_files: str) -> None:
    with pytest.raises(InputError, match="outside ComfyUI's input folder.*LORA_KILN_WRITE=1"):
        caption_outside(outside, write_files)
    assert files(outside) == {}


def test_captions_without_files_are_free_to_come(outside: Path) -> None:
    assert texts(caption_outside(outside, KEEP)[0])[0]


def test_whoever_runs_the_server_may_allow_it(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_KILN_WRITE", "1")
    captioned = caption_outside(outside, NEW_FILES)[0]
    assert files(outside)["a.txt"].strip() == captioned.pictures[0].caption
