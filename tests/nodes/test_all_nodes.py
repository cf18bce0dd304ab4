"""What holds for every node: a person can find it, and read what each field does."""

import folder_paths
import pytest
from lora_kiln.nodes import NODES

KOHYA = {
    "KilnLoRAConfig": {
        "rank": "network_dim", "alpha": "network_alpha", "text_encoder_learning_rate": "text_encoder_lr",
        "scheduler": "constant_with_warmup", "steps": "max_train_steps", "epochs": "max_train_epochs",
    },
    "KilnAdapterOptions": {"conv_rank": "conv_dim", "dropout": "network_dropout"},
    "KilnLossOptions": {
        "timestep_sampling": "sigmoid", "timestep_shift": "discrete_flow_shift", "logit_std": "sigmoid_scale",
        "multires_noise_iterations": "pyramid", "zero_terminal_snr": "zsnr",
    },
    "KilnLoadDataset": {
        "shortest_side": "min_bucket_reso", "longest_side": "max_bucket_reso", "bucket_step": "bucket_reso_steps",
        "flip": "flip_aug", "shuffle_tags": "shuffle_caption", "tag_dropout": "caption_tag_dropout_rate",
        "caption_dropout": "caption_dropout_rate", "regularisation_folder": "reg_data_dir",
    },
    "KilnTrainLoRA": {"start": "network_weights"},
}  # fmt: skip
"""Fields that are not called as in kohya's trainer: node id -> field -> kohya's name."""


@pytest.fixture(autouse=True)
def captioners(tmp_path, monkeypatch):
    """The folder of models that the pack adds when the host loads it."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "captioners", ([str(tmp_path)], set()))


@pytest.fixture(params=NODES, ids=lambda node: node.__name__)
def schema(request, captioners):
    return request.param.define_schema()


def test_ids_are_ours_and_differ():
    ids = [node.define_schema().node_id for node in NODES]
    assert all(each.startswith("Kiln") for each in ids)
    assert len(set(ids)) == len(ids)


def test_a_node_says_what_it_is_and_can_be_found(schema):
    assert schema.display_name and schema.category == "LoRA Kiln"
    assert schema.description.endswith(".")
    assert len(set(schema.search_aliases)) == len(schema.search_aliases) > 0


def test_every_input_and_output_has_a_tooltip(schema):
    assert [each.id for each in schema.inputs if not (each.tooltip or "").endswith(".")] == []
    assert [each.display_name for each in schema.outputs if not each.tooltip] == []


@pytest.mark.parametrize(
    ("node_id", "field", "name"),
    [(node_id, field, name) for node_id, table in KOHYA.items() for field, name in table.items()],
)
def test_a_field_says_its_usual_name(node_id: str, field: str, name: str):
    schema = next(each for each in (node.define_schema() for node in NODES) if each.node_id == node_id)
    assert name in next(each.tooltip for each in schema.inputs if each.id == field)
