"""Per-layer settings: what a line says, and lines that say nothing."""

import pytest
from lora_kiln.training.adapters.layer_rules import LayerRule, check_layer_rules, parse_layer_rules, rule_for
from lora_kiln.training.basics.errors import InputError

TO_Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"


def test_lines_become_rules() -> None:
    text = """
        # attention
        *attn1* rank=8 alpha=4 lr=0.5   # half as fast
        *.ff.* rank=0
        clip_l.* lr=2e-1
    """
    assert parse_layer_rules(text) == (
        LayerRule("*attn1*", 8, 4.0, 0.5),
        LayerRule("*.ff.*", 0),
        LayerRule("clip_l.*", learning_rate=0.2),
    )
    assert parse_layer_rules("") == parse_layer_rules("\n # nothing\n") == ()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("*attn*", "sets nothing"),
        ("rank=8", "no pattern"),
        ("*attn* dim=8", "'dim=8' is none of"),
        ("*attn* rank 8", "rank is ''"),
        ("*attn* rank=1.5", "rank is '1.5'"),
        ("*attn* rank=-1", "rank is '-1'"),
        ("*attn* rank=inf", "rank is 'inf'"),
        ("*attn* rank=eight", "rank is 'eight'"),
        ("*attn* alpha=0", "alpha is '0'"),
        ("*attn* lr=nan", "lr is 'nan'"),
        ("*attn* lr=1 lr=2", "lr is set twice"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"layer_rules line 2 .*({reason})") as caught:
        parse_layer_rules(f"*ok* rank=4\n{line}")
    assert caught.value.subject == "LoRA Config" and len(caught.value.problems) == 1


def test_all_bad_lines_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        parse_layer_rules("one\n*two* rank=2\nthree rank=x")
    assert [problem.split(" is ")[0] for problem in caught.value.problems] == [
        "layer_rules line 1",
        "layer_rules line 3",
    ]


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("input_blocks.*", TO_Q, True),
        ("diffusion_model.input_blocks.*", TO_Q, True),
        ("*.to_q", TO_Q, True),
        ("*ff*", TO_Q, False),
        ("*.attn?.to_q", TO_Q, True),
        ("*.attn[2].to_q", TO_Q, False),
        ("to_q", TO_Q, False),
        ("*.TO_Q", TO_Q, False),
        ("clip_l.*", TEXT, True),
        ("clip_g.*", TEXT, False),
    ],
)
def test_patterns_fit_module_paths(pattern: str, name: str, fits: bool) -> None:
    assert LayerRule(pattern).fits(name) is fits


def test_the_last_rule_that_fits_counts() -> None:
    rules = parse_layer_rules("*attn1* rank=8 alpha=2\n*to_q rank=4\n*ff* rank=0")
    assert rule_for(rules, TO_Q) == rules[1]
    assert rule_for(rules, TEXT) == LayerRule("*")


def test_patterns_that_fit_nothing_are_named() -> None:
    rules = parse_layer_rules("*to_q rank=4\n*to_z rank=4\nclip_g.* lr=0.5")
    with pytest.raises(InputError) as caught:
        check_layer_rules(rules, [TO_Q, TEXT])
    assert ["'*to_z'" in caught.value.problems[0], "'clip_g.*'" in caught.value.problems[1]] == [True, True]
    check_layer_rules(rules[:1], [TO_Q, TEXT])


def test_more_rules_than_can_be_compared_are_refused() -> None:
    text = "\n".join(f"*blocks.{number}.* rank=4" for number in range(2001))
    with pytest.raises(InputError, match="2,001 rules; it must have at most 2,000"):
        parse_layer_rules(text)
    assert len(parse_layer_rules(text.rpartition("\n")[0])) == 2000
