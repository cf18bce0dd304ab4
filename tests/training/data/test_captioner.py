"""The captioner on tiny random models of four architectures, built here and loaded from disk, offline."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
import transformers
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data.captioner import FOLDER, CaptionSettings, caption_images, find_model, local_models
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIDE, NEW_TOKENS = 32, 6
SPECIAL = ["[PAD]", "[UNK]", "<s>", "</s>", "<image>"]
PAD, UNK, START, END, IMAGE = range(len(SPECIAL))
WORDS = "a red blue green circle square star on the ground photo of".split()
TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
VISION = dict(**TINY, image_size=SIDE, patch_size=16)
IDS = dict(vocab_size=len(SPECIAL) + len(WORDS), bos_token_id=START, eos_token_id=END, pad_token_id=PAD)
SETTINGS = CaptionSettings(max_new_tokens=NEW_TOKENS)


def tokenizer(template: str = "$A") -> transformers.PreTrainedTokenizerFast:
    """A word a token. Template: where the start and end of a text are marked."""
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", START), ("</s>", END)]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>", extra_special_tokens={"image_token": "<image>"}, model_max_length=256,
    )  # fmt: skip


def talkative(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with weights that make it write words and no special tokens."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.shape[-1:] == (IDS["vocab_size"],):
            tensor.data[..., : len(SPECIAL)] = -100.0
        elif tensor.shape[:1] == (IDS["vocab_size"],):
            tensor.data[: len(SPECIAL)] = 0.0
            tensor.data[len(SPECIAL) :].normal_()
    return model


def blip(folder: Path) -> None:
    text = dict(**TINY, **IDS, encoder_hidden_size=16, max_position_embeddings=64, sep_token_id=END)
    config = transformers.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    talkative(transformers.BlipForConditionalGeneration(config)).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size=dict(height=SIDE, width=SIDE))
    transformers.BlipProcessor(images, tokenizer("<s> $A </s>")).save_pretrained(folder)


def git(folder: Path) -> None:
    config = transformers.GitConfig(vision_config=VISION, **TINY, **IDS, max_position_embeddings=64)
    talkative(transformers.GitForCausalLM(config)).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size=dict(shortest_edge=SIDE), crop_size=dict(height=SIDE, width=SIDE))
    transformers.GitProcessor(images, tokenizer()).save_pretrained(folder)


def blip2(folder: Path) -> None:
    text = dict(
        **IDS, model_type="opt", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32,
        word_embed_proj_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    former = dict(**TINY, vocab_size=IDS["vocab_size"], encoder_hidden_size=16)
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=former, text_config=text, num_query_tokens=4, image_token_index=IMAGE
    )
    talkative(transformers.Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size=dict(height=SIDE, width=SIDE))
    transformers.Blip2Processor(images, tokenizer(), num_query_tokens=4).save_pretrained(folder)


def florence2(folder: Path) -> None:
    text = dict(
        **IDS, model_type="bart", d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=256,
        decoder_start_token_id=END, forced_eos_token_id=END,
    )  # fmt: skip
    vision = dict(
        embed_dim=(8, 16), num_heads=(2, 2), num_groups=(2, 2), depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2),
        patch_padding=(3, 1), patch_prenorm=(False, True), window_size=4, projection_dim=16,
        max_temporal_embeddings=10, max_position_embeddings=10,
    )  # fmt: skip
    config = transformers.Florence2Config(text_config=text, vision_config=vision, image_token_id=IMAGE)
    talkative(transformers.Florence2ForConditionalGeneration(config)).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(
        size=dict(height=SIDE, width=SIDE), do_center_crop=False, image_seq_length=(SIDE // 8) ** 2 + 1
    )
    transformers.Florence2Processor(
        images, tokenizer(), num_additional_image_tokens=1, post_processor_config={"pure_text": {}}
    ).save_pretrained(folder)


ARCHITECTURES: dict[str, Callable[[Path], None]] = {"blip": blip, "git": git, "blip2": blip2, "florence2": florence2}


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/captioners with one folder an architecture."""
    folder = tmp_path_factory.mktemp("models") / FOLDER
    for name, build in ARCHITECTURES.items():
        torch.manual_seed(1)
        build(folder / "tiny" / name)
    return folder


@pytest.fixture(autouse=True)
def registered(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(models_folder)], set()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def picture(number: int = 0) -> Callable[[], Image.Image]:
    return lambda: Image.effect_noise((48, 40), 40 + 60 * number).convert("RGB")


def captions(model: str, count: int = 1, settings: CaptionSettings = SETTINGS, on_caption=lambda *_: None):
    return caption_images(f"tiny/{model}", [picture(n) for n in range(count)], [False] * count, settings, on_caption)


# ---------------------------------------------------------------- the architectures


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_it_writes_words(model: str, beams: int) -> None:
    (caption,) = captions(model, settings=CaptionSettings(max_new_tokens=NEW_TOKENS, num_beams=beams))
    assert caption and not set(SPECIAL) & set(caption.split())
    assert set(caption.split()) <= set(WORDS)


@pytest.mark.parametrize("model", ["blip", "git", "blip2"])
def test_it_writes_what_the_model_says_by_itself(model: str, models_folder: Path) -> None:
    image = Image.new("RGB", (48, 40), "orange")
    processor = transformers.AutoProcessor.from_pretrained(models_folder / "tiny" / model)
    network = transformers.AutoModelForImageTextToText.from_pretrained(models_folder / "tiny" / model)
    network = network.to(comfy.model_management.get_torch_device())
    network = network.to(torch.float16 if torch.cuda.is_available() else torch.float32)
    inputs = processor(images=image, return_tensors="pt").to(network.device, network.dtype)
    tokens = network.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=3)
    expected = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    assert caption_images(f"tiny/{model}", [lambda: image], [False], SETTINGS, lambda *_: None) == [expected]


@pytest.mark.parametrize("prompt", ["a photo of", "A photo of", " a photo of "])
def test_the_prompt_does_not_stand_in_blips_caption(prompt: str) -> None:
    (caption,) = captions("blip", settings=CaptionSettings(prompt=prompt, max_new_tokens=NEW_TOKENS))
    assert not caption.lower().startswith("a photo of")


@pytest.mark.parametrize("task", ["<CAPTION>", "<MORE_DETAILED_CAPTION>"])
def test_florence_takes_a_task(task: str) -> None:
    (caption,) = captions("florence2", settings=CaptionSettings(prompt=task, max_new_tokens=NEW_TOKENS))
    assert caption and task not in caption


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_it_leaves_the_host_as_it_was(model: str) -> None:
    before = list(comfy.model_management.current_loaded_models)
    captions(model)
    assert list(comfy.model_management.current_loaded_models) == before


def test_captions_come_one_by_one_in_order() -> None:
    heard = []
    written = captions("blip", 3, on_caption=lambda *each: heard.append(each))
    assert heard == list(enumerate(written))


def test_an_interrupt_ends_it_and_leaves_the_host_as_it_was() -> None:
    heard, before = [], list(comfy.model_management.current_loaded_models)

    def on_caption(index: int, caption: str) -> None:
        heard.append(index)
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        captions("blip", 3, on_caption=on_caption)
    assert heard == [0]
    assert list(comfy.model_management.current_loaded_models) == before


# ---------------------------------------------------------------- which model


def test_the_list_offers_the_local_models() -> None:
    assert local_models() == [f"tiny/{name}" for name in sorted(ARCHITECTURES)]


def test_a_local_model_is_found(models_folder: Path) -> None:
    assert find_model("tiny/blip") == str(models_folder / "tiny" / "blip")


@pytest.mark.parametrize("name", ["Salesforce/blip-image-captioning-base", "a/b", "microsoft/git-base.v1"])
def test_an_id_of_the_hub_is_passed_on(name: str) -> None:
    assert find_model(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../outside", "../../outside", "tiny/../../outside", "tiny/missing/x", "/etc", "tiny\\blip", "a/..",
     "../captioners-too/x", "~/x", "a/b/c", "a b/c", "https://example.org/x", "a/b\n"],
)  # fmt: skip
def test_any_other_name_is_refused(name: str, models_folder: Path) -> None:
    for outside in ("outside", "captioners-too/x"):
        folder = models_folder.parent / outside
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="captioner is"):
        find_model(name)


def test_an_absolute_path_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="captioner is"):
        find_model(str(tmp_path))


def test_a_folder_where_the_server_runs_is_no_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes a relative folder for an id where there is one."""
    blip(tmp_path / "some" / "folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        caption_images("some/folder", [picture()], [False], SETTINGS, lambda *_: None)


def test_a_model_that_cannot_be_loaded_is_named(models_folder: Path) -> None:
    broken = models_folder / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "config.json").write_text("{}")
    try:
        with pytest.raises(InputError, match="broken could not be loaded"):
            caption_images("broken", [picture()], [False], SETTINGS, lambda *_: None)
    finally:
        (broken / "config.json").unlink()


def test_pickled_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], set()))
    blip(tmp_path / "pickled")
    os.remove(tmp_path / "pickled" / "model.safetensors")
    network = transformers.BlipForConditionalGeneration(transformers.BlipConfig.from_pretrained(tmp_path / "pickled"))
    torch.save(network.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        caption_images("pickled", [picture()], [False], SETTINGS, lambda *_: None)


def test_an_interrupt_ends_a_caption_in_its_middle() -> None:
    def interrupted() -> Image.Image:
        comfy.model_management.interrupt_current_processing()
        return picture()()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        caption_images("tiny/blip", [interrupted], [False], SETTINGS, lambda *_: pytest.fail("a caption was written"))


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "a cat"),
        (dict(prefix="photo of "), "photo of a cat"),
        (dict(suffix=", indoors"), "a cat, indoors"),
        (dict(trigger_word="zwx"), "zwx, a cat"),
        (dict(trigger_word="zwx", prefix="zwx style, "), "zwx style, a cat"),
    ],
)
def test_a_caption_is_put_together(settings: dict, expected: str) -> None:
    assert CaptionSettings(**settings).compose("a cat") == expected
    assert CaptionSettings(**settings).compose("a cat", is_regularisation=True) == "a cat"


# ---------------------------------------------------------------- what its files may ask for


@pytest.fixture
def changed(models_folder: Path) -> Iterator[Callable[[str, dict], str]]:
    """Makes a copy of the tiny BLIP with entries added to one of its files; returns its name."""
    copies: list[Path] = []

    def change(file: str, entries: dict) -> str:
        copies.append(models_folder / f"changed-{len(copies)}")
        shutil.copytree(models_folder / "tiny" / "blip", copies[-1])
        path = copies[-1] / file
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        for name, value in entries.items():
            if isinstance(value, dict) and isinstance(content.get(name), dict):
                content[name].update(value)
            else:
                content[name] = value
        path.write_text(json.dumps(content), "utf-8")
        return copies[-1].name

    yield change
    for copy in copies:
        shutil.rmtree(copy)


def refusal(name: str) -> str:
    """The one sentence of the refusal of a captioner."""
    with pytest.raises(InputError) as refused:
        caption_images(name, [picture()], [False], SETTINGS, lambda *_: None)
    (sentence,) = refused.value.problems
    assert name in sentence and "\n" not in sentence and len(sentence) < 1000
    return sentence


@pytest.mark.parametrize(
    ("file", "entries", "said"),
    [
        ("config.json", {"_attn_implementation": "owner/kernel"}, "_attn_implementation is 'owner/kernel'"),
        ("config.json", {"text_config": {"attn_implementation": "owner/kernel"}}, "text_config.attn_implementation"),
        ("adapter_config.json", {"base_model_name_or_path": "owner/model", "peft_type": "LORA"}, "owner/model"),
        ("tokenizer_config.json", {"vocab_file": __file__}, "vocab_file"),
    ],
)
def test_a_captioner_that_names_code_or_files_is_not_loaded(
    changed: Callable[[str, dict], str], file: str, entries: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: loaded.append(1))
    assert said in refusal(changed(file, entries))
    assert not loaded


def test_an_index_does_not_bring_in_pickled_weights(models_folder: Path, changed: Callable[[str, dict], str]) -> None:
    name = changed("model.safetensors.index.json", {"metadata": {}})
    folder = models_folder / name
    network = transformers.BlipForConditionalGeneration.from_pretrained(models_folder / "tiny" / "blip")
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    os.remove(folder / "model.safetensors")
    weights = dict.fromkeys(network.state_dict(), "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    assert "weight_map" in refusal(name)


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"text_config": 5}),
        ("config.json", {"text_config": {"num_attention_heads": 0}}),
        ("config.json", {"text_config": {"hidden_size": "a"}}),
        ("config.json", {"vision_config": {"patch_size": 0}}),
        ("config.json", {"vision_config": {"image_size": [1, 2, 3]}}),
        ("config.json", {"model_type": ["blip"]}),
        ("config.json", {"text_config": {"bos_token_id": 10**9}}),
        ("generation_config.json", {"pad_token_id": "a"}),
        ("generation_config.json", {"num_return_sequences": [1]}),
        ("tokenizer_config.json", {"model_max_length": "a", "pad_token": 5}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.5, 0.5]}}),
        ("processor_config.json", {"image_processor": 5}),
    ],
)
def test_a_changed_captioner_ends_in_one_sentence(
    changed: Callable[[str, dict], str], file: str, entries: dict
) -> None:
    refusal(changed(file, entries))
