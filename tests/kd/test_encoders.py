from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from tasks.kd.encoders import (
    FAMILIES,
    capture_hidden,
    embeddings_of,
    layers_of,
    load_classifier,
    load_config,
    model_sha256,
    new_classifier,
)
from tasks.kd.errors import DataError
from tasks.kd.targets import pad

CONFIGS: dict[str, Any] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": XLMRobertaConfig,
}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def small(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[family](**SMALL)).eval()


def test_each_supported_family_is_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_states_are_those_that_transformers_returns(family: str) -> None:
    model = small(family)
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), capture_hidden(model, (0, 1, 2, 3)) as states:
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(layers_of(model)) == 3
    for layer, state in states.items():
        assert torch.equal(state, expected[layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_states_do_not_depend_on_padding(family: str) -> None:
    import numpy as np

    model = small(family)
    texts = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 11)]
    pad_id = model.config.pad_token_id
    with torch.no_grad(), capture_hidden(model, (0, 3)) as states:
        ids, mask = pad(texts, pad_id)
        model(input_ids=ids, attention_mask=mask.long())
        padded = {layer: state[0, :3].clone() for layer, state in states.items()}
        ids, mask = pad(texts[:1], pad_id)
        model(input_ids=ids, attention_mask=mask.long())
        for layer, state in states.items():
            torch.testing.assert_close(padded[layer], state[0], atol=2e-6, rtol=0)


def test_hooks_are_gone_when_capturing_ends(teacher: Any) -> None:
    with capture_hidden(teacher, (1,)) as states:
        pass
    teacher(input_ids=torch.tensor([[2, 7]]))
    assert states == {}
    assert not embeddings_of(teacher)._forward_hooks


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


def test_a_family_that_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match=r"family .*Expected model_type bert or .*found gpt2"):
        load_config(tmp_path)


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
    with pytest.raises(DataError, match=r"2 weights are missing.*classifier"):
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
