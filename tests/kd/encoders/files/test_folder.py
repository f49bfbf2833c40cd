"""A model's folder without loading it: each file that is not what its name says is named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.kd.encoders.files.folder import check_model_folder
from tasks.kd.encoders.files.weights import (
    INDEX,
    WEIGHTS,
    classifier_rows,
    read_header,
    read_headers,
    require_head,
)
from tasks.kd.errors import DataError
from tests.makers.small_families import small

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    f"oid sha256:{64 * 'a'}\n"
    "size 438000000\n"
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as transformers saves it."""
    folder = tmp_path_factory.mktemp("saved") / "teacher"
    small("bert").save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    shutil.copytree(saved, tmp_path / "teacher")
    return tmp_path / "teacher"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Save the weights with other names or content."""
    weights = change(load_file(folder / WEIGHTS))
    save_file({k: v.clone() for k, v in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {re.sub(old, new, name): value for name, value in weights.items()}


def refused(folder: Path, said: str) -> str:
    with pytest.raises(DataError, match=said) as error:
        check_model_folder(folder)
    assert error.value.exit_code == 2
    return str(error.value)


def test_a_folder_as_it_was_saved_is_whole(folder: Path) -> None:
    assert check_model_folder(folder)["model_type"] == "bert"
    tensors = read_headers(folder)
    assert classifier_rows(tensors) == 3
    assert set(tensors) == set(load_file(folder / WEIGHTS))


def test_it_is_looked_at_without_torch_and_transformers(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from tasks.kd.encoders.files.folder import check_model_folder;"
        f"check_model_folder(Path({str(folder)!r}));"
        "print([name for name in ('torch', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)  # noqa: PLW1510
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "a Git LFS pointer in the place of the file: {path}.*Run: git lfs pull"),
        ("", "an empty file: {path}"),
    ],
)
def test_what_stands_in_a_file_s_place_is_told_by_its_path(
    folder: Path, name: str, content: str, said: str
) -> None:
    (folder / name).write_text(content)
    refused(folder, said.format(path=re.escape(str(folder / name))))


@pytest.mark.parametrize("name", ["eval_results.json", "notes.txt", "lid.model"])
@pytest.mark.parametrize("content", [POINTER, ""])
def test_what_is_not_read_may_be_anything(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    check_model_folder(folder)


@pytest.mark.parametrize(
    ("beside", "said"), [(None, "an encoder alone"), ("model_head.pkl", "as SetFit keeps it")]
)
def test_weights_without_a_classifier_are_told(folder: Path, beside: str | None, said: str) -> None:
    rewrite(folder, lambda all_of: {k: v for k, v in all_of.items() if "classifier" not in k})
    if beside:
        (folder / beside).touch()
    with pytest.raises(DataError, match=rf"no classifier among the weights.*{said}.*fine_tune"):
        require_head(folder, read_headers(folder))


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_page_of_a_web_server_is_told_by_its_path(folder: Path, name: str) -> None:
    (folder / name).write_text("\n<!DOCTYPE html><html><body>404: Not Found</body></html>")
    refused(folder, f"a page of a web server.*{re.escape(str(folder / name))}")


@pytest.mark.parametrize("kept", [7, 8, 100, -1, -1000])
def test_weights_that_were_cut_are_told_by_their_path(folder: Path, kept: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    said = "was cut" if kept not in (7, 8) else "not a safetensors file"
    message = refused(folder, f"{said}: {re.escape(str(folder / WEIGHTS))}")
    if kept == -1:
        assert f"Expected at least {len(content)} bytes, found {len(content) - 1}" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"error": "Repository not found"}', "begin with '{\"error\"'"),
        (b"PK\x03\x04" + bytes(40), "a zip file, as torch.save writes"),
        (b"\x80\x02}q\x00." + bytes(9), "a pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
        ((9).to_bytes(8, "little") + b"{nothing}" + bytes(9), "not a safetensors header"),
        ((2).to_bytes(8, "little") + b"{}", "not a safetensors"),
        ((29).to_bytes(8, "little") + b'{"a": {"data_offsets": [0]}} ', "not a safetensors header"),
    ],
)
def test_weights_in_another_format_are_told_by_what_they_are(
    folder: Path, content: bytes, said: str
) -> None:
    (folder / WEIGHTS).write_bytes(content)
    message = refused(folder, re.escape(said))
    assert str(folder / WEIGHTS) in message


def test_bytes_that_a_header_does_not_speak_of_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more")
    refused(folder, "not a safetensors file")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", r"Model\.from_pretrained\('.*'\)\.save_pretrained"),
        ("tf_model.h5", r"transformers 4.*from_tf=True"),
        ("flax_model.msgpack", r"transformers 4.*from_flax=True"),
    ],
)
def test_weights_only_as_pickles_are_refused_with_the_command_that_converts(
    folder: Path, name: str, said: str
) -> None:
    (folder / WEIGHTS).rename(folder / name)
    message = refused(folder, said)
    assert message.startswith(f"no safetensors weights: {folder / WEIGHTS}")
    assert f"found {name}" in message
    assert "safe_serialization=True" in message


def test_the_command_that_converts_does(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    command = refused(folder, "no safetensors").partition("Run: python -c ")[2].strip('"')
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    check_model_folder(folder)
    for name, value in load_file(folder / WEIGHTS).items():
        assert torch.equal(value, weights[name])


def test_a_folder_without_any_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, rf"no safetensors weights: .*{WEIGHTS}.*found other formats or none")


def test_weights_of_another_name_are_refused_with_theirs(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "best.safetensors")
    refused(folder, r"no weights of that name.*Found best\.safetensors")


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same weights in several files."""
    model = small("bert")
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_are_read_as_one(sharded: Path, saved: Path) -> None:
    check_model_folder(sharded)
    assert set(read_headers(sharded)) == set(read_header(saved / WEIGHTS))


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    refused(sharded, rf"shards .* are missing: .*{re.escape(INDEX)}.*found none at {lost.name}")


def test_a_shard_that_was_cut_is_named(sharded: Path) -> None:
    broken = sorted(sharded.glob("model-*.safetensors"))[1]
    broken.write_bytes(broken.read_bytes()[:-3])
    refused(sharded, f"was cut: {re.escape(str(broken))}")


def test_weights_that_no_shard_holds_are_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["classifier.more"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, "1 weights are not in the shard.*classifier.more")


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../a.safetensors"}}', "{"]
)
def test_an_index_that_is_none_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    refused(sharded, re.escape(INDEX))


def test_an_index_beside_a_whole_file_is_refused(sharded: Path, saved: Path) -> None:
    shutil.copyfile(saved / WEIGHTS, sharded / WEIGHTS)
    refused(sharded, "two sets of weights")


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    refused(sharded, f"shards without their index: .*{re.escape(INDEX)}")


# --- names and types -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r"^", "_orig_mod.", "torch.compile"),
        (r"^bert\.", "bert._orig_mod.", "torch.compile"),
        (r"^", "module.", "DataParallel"),
        (r"^", "base_model.model.", "adapter"),
        (r"query\.weight", "query.base_layer.weight", "not merged"),
        (r"^classifier\.", "classifier.modules_to_save.default.", "adapter"),
        (r"^", "model.", "a wrapper, 'model.'"),
        (r"^", "net.encoder.", "a wrapper, 'net.encoder.'"),
    ],
)
def test_names_of_a_wrapper_are_refused_with_what_they_would_be_called(
    folder: Path, old: str, new: str, said: str
) -> None:
    rewrite(folder, renamed(old, new))
    message = refused(folder, said)
    assert str(folder / WEIGHTS) in message
    assert re.search(r"Expected a name such as (bert|classifier)\.", message)


def test_an_adapter_in_the_weights_is_refused(folder: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
    rewrite(folder, lambda weights: weights | {name: torch.zeros(2, 2)})
    refused(folder, r"an adapter that was not merged.*lora_A.*merge_and_unload\(\)")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(folder: Path, saved: Path, name: str) -> None:
    shutil.copyfile(saved / "config.json", folder / name)
    refused(folder, rf"an adapter .*{name}.*merge_and_unload\(\)")


def test_the_base_of_modernbert_is_no_wrapper(tmp_path: Path) -> None:
    small("modernbert").save_pretrained(tmp_path)
    check_model_folder(tmp_path)
    rewrite(tmp_path, renamed("^", "model."))
    refused(tmp_path, "a wrapper, 'model.'")


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: v.to(torch.int8) if v.ndim == 2 else v for k, v in w.items()},
        lambda w: {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in w.items()},
        lambda w: {k: v.to(torch.uint8) if v.ndim == 2 else v for k, v in w.items()},
        lambda w: w | {"bert.encoder.layer.0.output.dense.SCB": torch.zeros(3)},
        lambda w: w | {"bert.encoder.layer.0.output.dense.weight.absmax": torch.zeros(3)},
    ],
)
def test_quantised_weights_are_refused(folder: Path, change: Any) -> None:
    rewrite(folder, change)
    refused(folder, r"weights that are quantised.*Expected weights of F64, F32, F16, BF16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_whole(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda w: {k: v.to(dtype) for k, v in w.items()})
    check_model_folder(folder)


def test_relative_positions_are_refused_by_their_weights(folder: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    rewrite(folder, lambda weights: weights | {name: torch.zeros(79, 8)})
    refused(folder, f"would not use.*found {name}")
