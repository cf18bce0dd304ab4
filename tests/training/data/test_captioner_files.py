"""What a captioner's files ask for beside the model: entries that name code, other models or files are found."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from lora_kiln.training.data.captioner_files import LARGEST, PROGRAM, problems_of_files

CONFIG, TOKENIZER, PROCESSOR = "config.json", "tokenizer_config.json", "processor_config.json"
NAMED = [
    (CONFIG, {"_attn_implementation": "owner/kernel"}, "_attn_implementation is 'owner/kernel'"),
    (CONFIG, {"attn_implementation": "paged|owner/kernel@main:f"}, "attn_implementation"),
    (
        CONFIG,
        {"text_config": {"_attn_implementation_internal": "owner/kernel"}},
        "text_config._attn_impl",
    ),
    (CONFIG, {"attn_implementation": {"text_config": "owner/kernel"}}, "attn_implementation"),
    (CONFIG, {"a": [{"vision_config": {"_experts_implementation": "deepgemm"}}]}, "a.vision_config._experts_impl"),
    ("generation_config.json", {"compile_config": {"options": {"cpp.cxx": ["/bin/x"]}}}, "compile_config"),
    ("adapter_config.json", {"base_model_name_or_path": "owner/model"}, "base_model_name_or_path is 'owner/model'"),
    (PROCESSOR, {"audio_tokenizer": {"audio_tokenizer_name_or_path": "owner/model"}}, "audio_tokenizer_name_or_path"),
    (CONFIG, {"vision_config": {"backbone": "owner/model"}}, "vision_config.backbone"),
    (CONFIG, {"vision_config": {"use_pretrained_backbone": True}}, "use_pretrained_backbone"),
    (CONFIG, {"vision_config": {"architecture": "hf_hub:owner/model"}}, "architecture"),
    (CONFIG, {"vision_config": {"model_args": {"checkpoint_path": "model.bin"}}}, "checkpoint_path"),
    (CONFIG, {"text_config": {"auto_map": {"AutoModel": "owner/model--code.Net"}}}, "text_config.auto_map"),
    (CONFIG, {"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
    (CONFIG, {"transformers_weights": "../model.safetensors"}, "transformers_weights"),
    (CONFIG, {"configuration_files": ["../config.1.json"]}, "configuration_files"),
    ("preprocessor_config.json", {"repo_path": "owner/data", "class_info_file": "x.json"}, "repo_path"),
    (TOKENIZER, {"gguf_file": "model.gguf", "name_or_path": "owner/model"}, "gguf_file"),
    ("decoder_tokenizer/tokenizer_config.json", {"gguf_file": "model.gguf"}, "decoder_tokenizer/tokenizer_config.json"),
    ("model.safetensors.index.json", {"weight_map": {"a": "pytorch_model.bin"}}, "weight_map"),
    ("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "weight_map"),
    ("model.safetensors.index.json", {"weight_map": ["a"]}, "weight_map"),
]
USUAL = [
    (CONFIG, {"_attn_implementation": None, "_attn_implementation_autoset": True, "attn_implementation": "sdpa"}),
    (CONFIG, {"text_config": {"_attn_implementation": "eager"}, "_name_or_path": "Salesforce/blip", "model_type": "x"}),
    (CONFIG, {"auto_map": {"AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration"}}),
    (
        CONFIG,
        {"architectures": ["BlipForConditionalGeneration"], "vision_config": {"architecture": "vit_large"}},
    ),
    (CONFIG, {"quantization_config": {"quant_method": "awq", "bits": 4}, "transformers_version": "4.57.0"}),
    (CONFIG, {"quantization_config": {"load_in_4bit": True}}),
    ("generation_config.json", {"compile_config": None, "cache_implementation": "static"}),
    (TOKENIZER, {"special_tokens_map_file": "/root/gone/special_tokens_map.json", "tokenizer_file": "/root/gone.json"}),
    (TOKENIZER, {"chat_template": "{{ a/b }}", "added_tokens_decoder": {"1": {"content": "</s>"}}}),
    ("model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}}),
    ("tokenizer.json", {"model": {"vocab": {"gguf_file": 1}}}),
]


def problems(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return "\n".join(problems_of_files(folder))


@pytest.mark.parametrize(("name", "content", "said"), NAMED)
def test_what_names_code_a_model_or_a_file_is_found(tmp_path: Path, name: str, content: Any, said: str) -> None:
    assert said in problems(tmp_path, name, content)


@pytest.mark.parametrize(("name", "content"), USUAL)
def test_what_models_usually_hold_is_no_problem(tmp_path: Path, name: str, content: Any) -> None:
    assert problems(tmp_path, name, content) == ""


def test_a_file_of_this_computer_is_no_vocabulary(tmp_path: Path) -> None:
    secret, model = tmp_path / "secret.txt", tmp_path / "model"
    secret.write_text("secret")
    assert "vocab_file" in problems(model, TOKENIZER, {"vocab_file": str(secret)})
    assert "init_inputs" in problems(model, TOKENIZER, {"init_inputs": [str(secret)]})
    assert "outside" in problems(model, "special_tokens_map.json", {"merges_file": f"{model}/../secret.txt"})


def test_a_file_of_the_models_folder_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a")
    assert problems(tmp_path, TOKENIZER, {"vocab_file": str(tmp_path / "vocab.txt")}) == ""


@pytest.mark.parametrize(
    "content",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}},
    ],
)
def test_what_is_fetched_only_with_the_kernels_package_is_refused_only_there(
    tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert importlib.util.find_spec("kernels") is None
    assert problems(tmp_path / "model", CONFIG, content) == ""
    (tmp_path / "packages" / "kernels").mkdir(parents=True)
    (tmp_path / "packages" / "kernels" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert "implementation" in problems(tmp_path / "model", CONFIG, content) or "quantization_config" in problems(
        tmp_path / "model", CONFIG, content
    )


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff\xfe", " " * (LARGEST + 1)],
    ids=["cut off", "deep", "long number", "no UTF-8", "large"],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, CONFIG, text).startswith("config.json: it ")


def test_a_program_in_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / PROGRAM).parent.mkdir()
    (tmp_path / PROGRAM).write_text("")
    assert PROGRAM in problems(tmp_path, CONFIG, {})


def test_a_thousand_problems_are_a_few_sentences(tmp_path: Path) -> None:
    said = problems(tmp_path, CONFIG, {f"l{n}": {"attn_implementation": "owner/kernel"} for n in range(1000)})
    assert len(said.splitlines()) < 10 and "995 more" in said
