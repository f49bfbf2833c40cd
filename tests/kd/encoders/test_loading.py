from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import ElectraForPreTraining, RobertaModel

from tasks.kd.encoders.capture import capture_hidden
from tasks.kd.encoders.files.architectures import FAMILIES, kernel
from tasks.kd.encoders.files.weights import WEIGHTS
from tasks.kd.encoders.loading import (
    attention_kernel,
    load_classifier,
    load_config,
    model_sha256,
    new_classifier,
)
from tasks.kd.encoders.shape import layers_of
from tasks.kd.errors import DataError
from tests.makers.small_families import CONFIGS, ragged, small


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_states_are_those_that_transformers_returns(family: str) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    with torch.no_grad(), capture_hidden(model, (0, 1, 3, 4)) as states:
        expected = model(
            input_ids=ids_BT, attention_mask=mask_BT.long(), output_hidden_states=True
        ).hidden_states
    assert len(layers_of(model)) == 4
    assert set(states) == {0, 1, 3, 4}
    for layer, state in states.items():
        assert torch.equal(state, expected[layer])


def test_hooks_are_gone_when_capturing_ends(teacher: Any) -> None:
    with capture_hidden(teacher, (1,)) as states:
        pass
    teacher(input_ids=torch.tensor([[2, 7]]))
    assert states == {}
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_saved_classifier_loads_as_it_was(teacher: Any, teacher_folder: Path) -> None:
    loaded = load_classifier(teacher_folder)
    assert not loaded.training
    ids = torch.tensor([[2, 7, 20]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, teacher(input_ids=ids).logits)


def test_a_new_head_has_the_data_s_labels(
    teacher_folder: Path, tmp_path: Path, teacher: Any
) -> None:
    teacher.bert.save_pretrained(tmp_path)
    model: Any = new_classifier(tmp_path, ["a", "b"])
    assert model.config.id2label == {0: "a", 1: "b"}
    assert model.classifier.weight.shape[0] == 2
    assert torch.equal(
        model.bert.encoder.layer[0].output.dense.weight,
        teacher.bert.encoder.layer[0].output.dense.weight,
    )


# The weights of each family's classification head, as transformers names them.
HEADS = {
    "bert": {"bert.pooler.dense", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "xlm-roberta": {"classifier.dense", "classifier.out_proj"},
    "distilbert": {"pre_classifier", "classifier"},
    "electra": {"classifier.dense", "classifier.out_proj"},
    "mpnet": {"classifier.dense", "classifier.out_proj"},
    "modernbert": {"head.dense", "head.norm", "classifier"},
    "deberta-v2": {"pooler.dense", "classifier"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_every_family_loads_as_it_was(family: str, tmp_path: Path) -> None:
    model, (ids_BT, mask_BT) = small(family), ragged()
    model.save_pretrained(tmp_path)
    loaded: Any = load_classifier(tmp_path)
    assert loaded.config._attn_implementation == kernel(family)
    with torch.no_grad():
        for each in (loaded, new_classifier(tmp_path, ["a", "b", "c"])):
            found = each(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
            expected = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
            assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_head_of_a_new_classifier_is_new(family: str, tmp_path: Path) -> None:
    model = small(family)
    model.save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    head = {name for name in whole if name.rpartition(".")[0] in HEADS[family]}
    assert {name.rpartition(".")[0] for name in head} == HEADS[family]
    others = {name for name in whole if not re.search(r"\blayers?\.[012]\.", name)}
    assert head < others
    for name in sorted(others):
        rest = {key: value for key, value in whole.items() if key != name}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        refused = pytest.raises(DataError, match=rf"(?:1 weights are|no classifier among).*{name}")
        if name in head:
            new_classifier(tmp_path, ["a", "b"])
            with refused:
                load_classifier(tmp_path)
        else:
            with refused:
                new_classifier(tmp_path, ["a", "b"])


def test_a_family_that_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match=r"family .*Expected model_type bert or .*found gpt2"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "bert", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "bert", "vocab_size": null}', "vocab_size"),
        ('{"model_type": "modernbert", "layer_types": ["x"]}', "rope_parameters"),
        ('{"model_type": "modernbert", "rope_parameters": 3}', "Error: "),
        ('{"model_type": "bert", "dtype": "floaty"}', "floaty"),
        ('{"model_type": ["bert"]}', "model_type"),
        ('{"hidden_size": 3}', "model_type null"),
    ],
)
def test_a_configuration_that_transformers_refuses_is_named(
    config: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(DataError, match=rf"model: {re.escape(str(tmp_path))}/config\.json.*{said}"):
        load_config(tmp_path)


@pytest.mark.parametrize(("config", "said"), [("[1]", "not a JSON object"), ("{", "not JSON")])
def test_a_configuration_that_is_no_object_is_named(config: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(DataError, match=f"{said}: {re.escape(str(tmp_path))}/config.json"):
        load_config(tmp_path)


@pytest.mark.parametrize("load", [load_classifier, lambda folder: new_classifier(folder, ["a"])])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("num_attention_heads", 5, "multiple"), ("type_vocab_size", 10**12, "memory")],
)
def test_fields_that_no_model_can_be_built_of_are_named(
    load: Any, field: str, value: int, said: str, teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(DataError, match=rf"not the configuration .*config\.json.*{said}"):
        load(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_kernel_is_the_one_that_is_really_used(family: str, tmp_path: Path) -> None:
    model = small(family)
    assert attention_kernel(model) == kernel(family)
    model.save_pretrained(tmp_path)
    assert attention_kernel(load_classifier(tmp_path)) == kernel(family)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json is missing"):
        load_classifier(tmp_path)


def save_changed(teacher: Any, folder: Path, change: Any) -> None:
    """Save a teacher, and change its weights on disk."""
    teacher.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_load_are_refused_and_never_random(
    teacher: Any, tmp_path: Path
) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    save_changed(teacher, tmp_path / "lost", lambda w: {k: v for k, v in w.items() if k != name})
    save_changed(teacher, tmp_path / "cut", lambda w: {**w, name: w[name][:, :7].contiguous()})
    for folder in ("lost", "cut"):
        for load in (load_classifier, lambda path: new_classifier(path, ["a", "b"])):
            with pytest.raises(DataError, match=rf"1 weights are missing or of.*{name}"):
                load(tmp_path / folder)


def test_a_classifier_without_its_head_is_refused(teacher: Any, tmp_path: Path) -> None:
    teacher.bert.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"no classifier among the weights"):
        load_classifier(tmp_path)


def test_a_model_s_digest_is_that_of_weights_and_configuration(
    teacher: Any, tmp_path: Path
) -> None:
    teacher.save_pretrained(tmp_path)
    before = model_sha256(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {"0": "x"}, "transformers_version": "9"}))
    assert model_sha256(tmp_path) == before
    for changed in ({"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}, {"num_attention_heads": 2}):
        path.write_text(json.dumps({**config, **changed}))
        assert model_sha256(tmp_path) != before


def test_pickled_weights_are_never_loaded(teacher: Any, tmp_path: Path) -> None:
    teacher.config.save_pretrained(tmp_path)
    torch.save(teacher.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="no safetensors weights"):
        load_classifier(tmp_path)


# --- weights that the model would not use --------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.7.output.dense.weight",
        "bert.encoder.layer.0.adapters.mails.adapter_down.0.weight",
        "cls.predictions.bias",
        "ner_classifier.weight",
    ],
)
def test_weights_that_a_classifier_would_not_use_are_refused_by_name(
    name: str, teacher: Any, tmp_path: Path
) -> None:
    save_changed(teacher, tmp_path, lambda w: {**w, name: torch.zeros(3)})
    with pytest.raises(DataError, match=rf"1 weights would not be used: .*{WEIGHTS}.*{name}"):
        load_classifier(tmp_path)


HARMLESS = ["bert.embeddings.position_ids", "bert.embeddings.token_type_ids"]


def test_buffers_of_old_versions_are_no_weights(teacher: Any, tmp_path: Path) -> None:
    buffers = {name: torch.arange(32)[None] for name in HARMLESS}
    save_changed(teacher, tmp_path, lambda w: {**w, **buffers})
    load_classifier(tmp_path)
    new_classifier(tmp_path, ["a", "b"])


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_a_pooler_that_the_classifier_does_not_read_may_stay(family: str, tmp_path: Path) -> None:
    model = small(family)
    pooler = {f"{model.base_model_prefix}.pooler.dense.weight": torch.zeros(32, 32)}
    save_changed(model, tmp_path, lambda w: {**w, **pooler})
    load_classifier(tmp_path)


@pytest.mark.parametrize("task", ["MaskedLM", "QuestionAnswering", "TokenClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_another_task_may_stay_where_a_new_one_is_put_on(
    family: str, task: str, tmp_path: Path
) -> None:
    config = CONFIGS[family]()
    config.num_labels = 2
    getattr(transformers, f"AutoModelFor{task}").from_config(config).save_pretrained(tmp_path)
    new_classifier(tmp_path, ["a", "b"])
    with pytest.raises(DataError, match=rf"not a classifier .*config\.json.*found \w+For{task}"):
        load_classifier(tmp_path)


def test_an_encoder_alone_and_one_that_was_pre_trained_take_a_new_head(tmp_path: Path) -> None:
    electra = ElectraForPreTraining(CONFIGS["electra"]())
    electra.save_pretrained(tmp_path / "electra")
    new_classifier(tmp_path / "electra", ["a", "b"])
    RobertaModel(CONFIGS["roberta"]()).save_pretrained(tmp_path / "roberta")
    new_classifier(tmp_path / "roberta", ["a", "b"])


def test_weights_that_are_not_finite_are_refused_by_name(teacher: Any, tmp_path: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[name][0, 0] = float("nan")
        return weights

    save_changed(teacher, tmp_path, spoil)
    for load in (load_classifier, lambda path: new_classifier(path, ["a", "b"])):
        with pytest.raises(DataError, match=rf"1 weights hold NaN or infinity.*{name}"):
            load(tmp_path)


def test_old_names_and_half_precision_load_as_they_were(teacher: Any, tmp_path: Path) -> None:
    def age(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
        return {name: value.half() for name, value in weights.items()}

    save_changed(teacher, tmp_path, age)
    for name, value in load_classifier(tmp_path).named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, teacher.get_parameter(name).half().float())


def test_shards_are_saved_again_as_one_file(teacher: Any, tmp_path: Path) -> None:
    teacher.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards" / WEIGHTS).exists()
    loaded: Any = load_classifier(tmp_path / "shards")
    loaded.save_pretrained(tmp_path / "one")
    teacher.save_pretrained(tmp_path / "as it was")
    assert model_sha256(tmp_path / "one") == model_sha256(tmp_path / "as it was")


@pytest.mark.parametrize(
    "fields",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"torchscript": True},
        {"chunk_size_feed_forward": 2},  # a text of 3 tokens would be a fault
    ],
)
def test_how_a_model_answers_is_not_the_file_s_to_say(
    fields: dict[str, Any], teacher: Any, teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    ids = torch.tensor([[2, 7, 20]])
    with torch.no_grad():
        found = load_classifier(tmp_path)(input_ids=ids).logits
        assert torch.equal(found, teacher(input_ids=ids).logits)


def test_label_names_are_saved_in_the_right_form(teacher: Any, tmp_path: Path) -> None:
    teacher.save_pretrained(tmp_path / "numbers")
    path = tmp_path / "numbers" / "config.json"
    config = json.loads(path.read_text())
    numbers = {"id2label": [0, 1, 2], "label2id": None}
    path.write_text(json.dumps(config | numbers))
    loaded: Any = load_classifier(tmp_path / "numbers")
    assert loaded.config.id2label == {0: "0", 1: "1", 2: "2"}
    named: Any = load_classifier(tmp_path / "numbers", ["bad", "fair", "good"])
    named.save_pretrained(tmp_path / "named")
    saved = json.loads((tmp_path / "named" / "config.json").read_text())
    assert saved["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert saved["label2id"] == {"bad": 0, "fair": 1, "good": 2}


def test_a_classifier_whose_names_its_rows_contradict_is_refused(
    teacher: Any, tmp_path: Path
) -> None:
    teacher.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"id2label": {"0": "a", "1": "b"}, "label2id": None}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"id2label and the classifier contradict.*config\.json"):
        load_classifier(tmp_path)
