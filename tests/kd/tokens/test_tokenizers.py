"""The tokenizer of a model folder: as its own files say it, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from tasks.kd.encoders.files.architectures import FAMILIES
from tasks.kd.errors import DataError
from tasks.kd.tokens.encoding import encode, read_tokenizer
from tasks.kd.tokens.files import SLOW, find_tokenizer
from tasks.kd.tokens.tokenizers import compare_tokenizers, load_tokenizer, write_tokenizer_folder
from tasks.kd.tokens.vocabularies import require_same_pieces
from tests.makers.tokenizer_folders import (
    SPECIAL,
    TEXTS,
    WORDS,
    wordpiece,
    write,
    write_folder,
    write_vocabulary,
)

PIECES = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def change_json(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def ids_of(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    return [ids.tolist() for ids in encode(load_tokenizer(folder).tokenizer, texts)]


# --- what transformers itself saves ---------------------------------------------------------------


def learn_bytes(folder: Path) -> Path:
    """vocab.json and merges.txt of a byte-level BPE."""
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    return folder


def unigram_pieces(special: list[str]) -> list[tuple[str, float]]:
    words = [f"▁{word}" for word in WORDS[:18]]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzWCI?,.é1"]
    scored = [(piece, -2.0) for piece in words] + [(piece, -8.0) for piece in letters]
    return [(piece, 0.0) for piece in special] + scored


def made_by_the_library(family: str, folder: Path) -> Any:
    if family in ("bert", "distilbert", "electra"):
        return BertTokenizer({word: i for i, word in enumerate([*SPECIAL, *WORDS])})
    if family == "mpnet":
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        return MPNetTokenizer({word: i for i, word in enumerate([*special, *WORDS])})
    if family == "roberta":
        files = learn_bytes(folder / "files")
        return RobertaTokenizer.from_pretrained(files)
    if family == "xlm-roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        return XLMRobertaTokenizer([*unigram_pieces(special), ("<mask>", 0.0)])
    if family == "deberta-v2":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
        return DebertaV2Tokenizer([*unigram_pieces(special), ("[MASK]", 0.0)], unk_id=3)
    return PreTrainedTokenizerFast(tokenizer_object=wordpiece(), **PIECES)


PAD_IDS = {"roberta": 1, "xlm-roberta": 1, "mpnet": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_gives_the_ids_that_transformers_gives(
    tmp_path: Path, family: str
) -> None:
    library = made_by_the_library(family, tmp_path)
    folder = write_folder(tmp_path / "model", model_type=family)
    library.save_pretrained(folder)
    pad = library.pad_token_id
    config = {"model_type": family, "pad_token_id": pad, "vocab_size": len(library)}
    write(folder / "config.json", config)
    model = load_tokenizer(folder)
    assert (model.pad_token_id, model.truncation_side) == (pad, "right")
    again = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "", "  two  blanks ", "x [MASK] y <mask> z", "naïve ①"]
    assert [ids.tolist() for ids in encode(model.tokenizer, texts)] == again(texts)["input_ids"]
    assert again(texts)["input_ids"] == library(texts)["input_ids"]


def test_the_list_of_slow_tokenizers_is_the_library_s_own() -> None:
    names = {name for name in TOKENIZER_MAPPING_NAMES.values() if name}
    classes = {name: tokenizer_class_from_name(name) for name in names}
    slow = {
        name
        for name, found in classes.items()
        if isinstance(found, type) and not issubclass(found, TokenizersBackend)
    }
    assert slow <= SLOW


# --- tokenizer.json is what counts ----------------------------------------------------------------


def test_a_tokenizer_json_is_read_as_it_stands_whatever_the_class(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate([*SPECIAL, *WORDS])}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True, **PIECES}
    folder = write_folder(tmp_path, tokenizer, settings, model_type="roberta")
    assert ids_of(folder, ["My parcel was late"]) == [[2, 7, 8, 12, 13, 3]]
    assert AutoTokenizer.from_pretrained(folder)("My parcel")["input_ids"] != [2, 7, 8, 3]


def test_a_cased_tokenizer_json_keeps_capitals_though_nothing_says_so(tmp_path: Path) -> None:
    words = ["Where", "Is", "my"]
    folder = write_folder(tmp_path, wordpiece(words, lowercase=False))
    assert ids_of(folder, ["Where my"]) == [[2, 5, 7, 3]]


def test_a_vocabulary_with_capitals_is_not_lower_cased(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    write_vocabulary(folder, ["Where", "Is", "my", "where"])
    assert ids_of(folder, ["Where my"]) == [[2, 5, 7, 3]]


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, "CAFÉ", [2, WORDS.index("cafe") + 5, 3]),
        ({"strip_accents": False}, "café", [2, 1, 3]),
        ({"do_lower_case": False}, "PARCEL", [2, 1, 3]),
        ({"tokenize_chinese_chars": False}, "a中", [2, 1, 3]),
        ({}, "a中", [2, WORDS.index("a") + 5, 1, 3]),
    ],
)
def test_a_vocabulary_is_read_as_the_configuration_says(
    tmp_path: Path, settings: dict[str, Any], text: str, expected: list[int]
) -> None:
    folder = write_folder(tmp_path, settings={"tokenizer_class": "BertTokenizer", **settings})
    write_vocabulary(folder)
    assert ids_of(folder, [text]) == [expected]
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == expected


@pytest.mark.parametrize("prefix", [True, False])
def test_byte_level_files_are_read_as_the_library_reads_them(tmp_path: Path, prefix: bool) -> None:
    settings = {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": prefix}
    folder = write_folder(learn_bytes(tmp_path), None, settings, model_type="roberta")
    write(folder / "config.json", {"model_type": "roberta", "pad_token_id": 1})
    assert ids_of(folder) == AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]


@pytest.mark.parametrize("newer", [True, False])
def test_tokens_beyond_the_vocabulary_are_added_at_their_ids(tmp_path: Path, newer: bool) -> None:
    count = len(SPECIAL) + len(WORDS)
    folder = write_folder(tmp_path, wordpiece())
    if newer:
        fields = {"content": "<user>", "special": False, "normalized": False}
        write(folder / "tokenizer_config.json", {"added_tokens_decoder": {str(count): fields}})
        write(folder / "added_tokens.json", {"<user>": count, "<url>": count + 1})
    else:
        write(folder / "added_tokens.json", {"<user>": count})
    texts = ["<user> log", "log <url> <user>"]
    assert ids_of(folder, texts)[0] == [2, count, WORDS.index("log") + 5, 3]
    assert ids_of(folder, texts) == AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    write(folder / "added_tokens.json", {"<user>": count + 1, "[PAD]": 1})
    assert "has one id in one file and another id in another" in refusal(folder)


@pytest.mark.parametrize(
    ("says", "in_file", "expected"),
    [
        ("left", None, "left"),
        (None, "left", "left"),
        ("right", "left", "right"),
        (None, None, "right"),
    ],
)
def test_the_configuration_s_side_counts_before_the_file_s(
    tmp_path: Path, says: str | None, in_file: str | None, expected: str
) -> None:
    tokenizer = wordpiece()
    if in_file:
        tokenizer.enable_truncation(8, direction=in_file)
    folder = write_folder(tmp_path, tokenizer, {"truncation_side": says} if says else {})
    assert load_tokenizer(folder).truncation_side == expected
    assert AutoTokenizer.from_pretrained(folder).truncation_side == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_saved_tokenizer_is_read_back_as_it_was_by_us_and_by_the_library(
    tmp_path: Path, side: str
) -> None:
    settings = {"truncation_side": side, **PIECES}
    model = load_tokenizer(write_folder(tmp_path / "model", wordpiece(), settings))
    saved = tmp_path / "saved"
    write_tokenizer_folder(model, saved, 5)
    text = "My parcel was late a refund"
    own = encode(read_tokenizer(saved / "tokenizer.json", 5), [text])
    expected = {"left": [2, 13, 14, 15, 3], "right": [2, 7, 8, 12, 3]}
    assert own[0].tolist() == expected[side]
    # In a model's folder too, where the family has a class of its own.
    write(saved / "config.json", {"model_type": "bert"})
    loaded = AutoTokenizer.from_pretrained(saved)
    assert loaded(text, truncation=True)["input_ids"] == own[0].tolist()
    named = {role: getattr(loaded, role) for role in PIECES}
    assert (named, loaded.truncation_side, loaded.model_max_length) == (PIECES, side, 5)
    assert "token_type_ids" not in loaded(text)


# --- contradictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_lower_case": False}, "in do_lower_case"),
        ({"strip_accents": False}, "in strip_accents"),
        ({"tokenize_chinese_chars": False}, "in tokenize_chinese_chars"),
        ({"do_lower_case": "no"}, "neither true nor false"),
        ({"split_special_tokens": True}, "split_special_tokens"),
        ({"cls_token": "<s>"}, "lacks special pieces that the configuration names"),
        ({"mask_token": "<mask>"}, "mask_token '<mask>'"),
        ({"cls_token": "a"}, "names another first piece"),
        ({"cls_token": "[SEP]"}, "names another first piece"),
        ({"sep_token": "[MASK]"}, "names another last piece"),
        ({"unk_token": "[MASK]"}, "names another unknown piece"),
        ({"additional_special_tokens": "[MASK]"}, "not a list of special pieces"),
        ({"extra_special_tokens": [{"content": 5}]}, "not a list of special pieces"),
        ({"cls_token": 5}, "a special piece is no text"),
        ({"pad_token": {"text": "[PAD]"}, "unk_token": []}, "a special piece is no text"),
        ({"tokenizer_class": 5}, "the tokenizer's class is no name"),
        ({"truncation_side": "middle"}, "Expected left or right, found 'middle'"),
        ({"added_tokens_decoder": {"0": {"content": "[UNK]"}}}, "Expected 1"),
        ({"added_tokens_decoder": {"99": {"content": "<new>"}}}, "has one id in one file"),
        ({"added_tokens_decoder": ["[PAD]"]}, "not a list of added tokens"),
        ({"added_tokens_decoder": {"0": "[PAD]"}}, "not a list of added tokens"),
        ({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}, "auto_map"),
        ({"tokenizer_class": "BertweetTokenizer"}, "tokenizer_class BertweetTokenizer"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class BertJapaneseTokenizer"),
        ({"word_tokenizer_type": "sudachi"}, "word_tokenizer_type 'sudachi'"),
    ],
)
def test_a_configuration_that_contradicts_the_tokenizer_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    ids_of(write_folder(tmp_path, wordpiece(), {}))
    assert said in refusal(write_folder(tmp_path, None, settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True, **PIECES},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},  # not read by it
        {"tokenizer_class": "TheirOwnTokenizer"},
        {"never_split": None, "do_basic_tokenize": True, "model_max_length": 10**30},
        {"cls_token": {"__type": "AddedToken", "content": "[CLS]", "lstrip": False}},
        {"added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}},
        {"additional_special_tokens": ["<e1>"], "bos_token": "<bos>", "pad_token": None},
    ],
)
def test_what_is_common_and_harmless_is_not_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path, wordpiece(), settings)
    assert ids_of(folder) == ids_of(write_folder(tmp_path / "plain", wordpiece()))


@pytest.mark.parametrize("has_json", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"additional_special_tokens": ["late", "<user>"]},
        {"extra_special_tokens": {"a": "late", "b": {"content": "<user>", "__type": "AddedToken"}}},
    ],
)
def test_further_special_pieces_are_found_in_texts_as_in_transformers(
    tmp_path: Path, settings: dict[str, Any], has_json: bool
) -> None:
    rows = len([*SPECIAL, *WORDS])
    tokenizer = wordpiece() if has_json else None
    folder = write_folder(tmp_path / "model", tokenizer, settings, vocab_size=rows + 1)
    write_vocabulary(folder)
    late = wordpiece().token_to_id("late")
    assert ids_of(folder, ["<user>late"]) == [[2, rows, late, 3]]
    # A table that has no row for it: nobody's weights have seen it.
    full = write_folder(tmp_path / "full", tokenizer, settings, vocab_size=rows)
    write_vocabulary(full)
    assert rows not in ids_of(full, ["<user>late"])[0]


def test_flags_of_another_kind_of_tokenizer_say_nothing(tmp_path: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made = XLMRobertaTokenizer([*unigram_pieces(special), ("<mask>", 0.0)])
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None}
    pieces = {role: getattr(made, role) for role in PIECES}
    folder = write_folder(tmp_path, made.backend_tokenizer, settings | pieces)
    assert ids_of(folder) == made(TEXTS)["input_ids"]


def test_a_blank_line_and_a_byte_order_mark_are_no_words(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, None, {}, vocab_size=len([*SPECIAL, *WORDS]))
    path = write_vocabulary(folder)
    plain = ids_of(folder)
    path.write_text("\ufeff" + path.read_text() + "\n")
    assert ids_of(folder) == plain


def test_a_prefix_blank_that_the_files_do_not_agree_on_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", model_type="roberta")
    RobertaTokenizer.from_pretrained(learn_bytes(tmp_path / "f")).save_pretrained(folder)
    write(folder / "config.json", {"model_type": "roberta", "pad_token_id": 1})
    load_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    write(path, {**json.loads(path.read_text()), "add_prefix_space": True})
    assert "contradict one another in add_prefix_space" in refusal(folder)
    write(path, {**json.loads(path.read_text()), "add_prefix_space": False})
    words = {"a": 0} | {f"x{i}": i for i in range(1, 9)}
    write(folder / "vocab.json", words)
    assert "vocab.json and tokenizer.json give a piece different ids" in refusal(folder)


def test_a_vocabulary_of_other_ids_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, wordpiece())
    write_vocabulary(folder)
    load_tokenizer(folder)
    write_vocabulary(folder, WORDS[1:])
    said = refusal(folder)
    assert "vocab.txt and tokenizer.json give a piece different ids" in said
    assert "'is'. Expected 6, as tokenizer.json does, found 5" in said


def drop_around(written: Any) -> None:
    written["post_processor"] = None


def old_ids_around(written: Any) -> None:
    written["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [9]


def other_marks(written: Any) -> None:
    words = written["model"]["vocab"]
    written["model"]["vocab"] = {
        (f"▁{word}" if i >= 5 else word): i for i, word in enumerate(sorted(words, key=words.get))
    }


def capitals(written: Any) -> None:
    words = written["model"]["vocab"]
    written["model"]["vocab"] = {
        (word.title() if number > 4 and number % 3 else word): number
        for word, number in words.items()
    }


def accents(written: Any) -> None:
    words = written["model"]["vocab"]
    written["model"]["vocab"] = {
        (word.replace("e", "é") if number > 4 else word): number for word, number in words.items()
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_around, "tokenizer.json puts nothing around a text, and BertTokenizer does"),
        (old_ids_around, "writes a piece with another id than the vocabulary has"),
        (other_marks, "can't make the words of its own vocabulary"),
        (capitals, "can't make the words of its own vocabulary"),
        (accents, "can't make the words of its own vocabulary"),
        (lambda written: written.pop("model"), "not a tokenizer"),
        (lambda written: written["model"].update(type="Tree"), "not a tokenizer"),
        (lambda written: written["model"].update(vocab={}), "a tokenizer that knows no word"),
        (lambda written: written["model"].update(vocab=5), "not a tokenizer"),
    ],
)
def test_a_tokenizer_json_that_can_not_be_meant_is_refused(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    folder = write_folder(tmp_path, wordpiece())
    change_json(folder, change)
    assert said in refusal(folder)


def test_the_share_of_words_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    few = [f"word{i}" for i in range(95)]
    load_tokenizer(write_folder(tmp_path / "few", wordpiece([*few, *["Ab", "Cd", "Ef", "Gh"]])))
    many = write_folder(tmp_path / "many", wordpiece([*few, *["Ab", "Cd", "Ef", "Gh", "Ij", "Kl"]]))
    said = refusal(many)
    assert "Expected at most 5% of 101 that no text gives, found 5.9%, among them 'Ab'" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "an empty file"),
        ('{"version": "1.0", "trunc', "is cut, or is no JSON object"),
        ("[1, 2]", "is cut, or is no JSON object"),
        ("{}", "not a tokenizer"),
        ('{"a": }', "not a tokenizer"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str, said: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\n", "not a vocabulary"),
        (b"\xff\xfe", "not a vocabulary"),
        (b"the 9\nof 7\n", "the vocabulary lacks a special piece"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "vocab.txt").write_bytes(content)
    assert said in refusal(folder)


def test_ids_that_the_model_has_no_rows_for_are_refused(tmp_path: Path) -> None:
    count = len(SPECIAL) + len(WORDS)
    load_tokenizer(write_folder(tmp_path, wordpiece(), vocab_size=count))
    said = refusal(write_folder(tmp_path, wordpiece(), vocab_size=count - 1))
    assert f"vocab_size of at least {count}, found {count - 1}" in said


@pytest.mark.parametrize(("family", "refused"), [("roberta", True), ("bert", False)])
def test_another_padding_id_matters_where_positions_count_from_it(
    tmp_path: Path, family: str, refused: bool
) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **PIECES}
    folder = write_folder(tmp_path, wordpiece(), settings, model_type=family, pad_token_id=1)
    if refused:
        assert "Expected pad_token_id 0 ([PAD]), found 1" in refusal(folder)
    else:
        assert load_tokenizer(folder).pad_token_id == 0


def test_a_tokenizer_without_padding_takes_the_model_s_or_is_refused(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write_folder(tmp_path, wordpiece(), settings, pad_token_id=0)
    assert load_tokenizer(folder).pieces["pad_token"] == "[PAD]"
    write(folder / "config.json", {"model_type": "bert"})
    assert "has no padding token" in refusal(folder)


# --- no tokenizer, or one that is a program -------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", "Expected tokenizer.json or vocab.txt (BertTokenizer), found neither"),
        ("roberta", "Expected tokenizer.json or vocab.json and merges.txt (RobertaTokenizer)"),
        ("xlm-roberta", "sentencepiece.bpe.model (XLMRobertaTokenizer)"),
        ("modernbert", "Expected tokenizer.json, found neither"),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused_with_what_is_missing(
    tmp_path: Path, family: str, expected: str
) -> None:
    assert expected in refusal(write_folder(tmp_path, model_type=family))


@pytest.mark.parametrize(
    ("files", "settings", "said"),
    [
        (["vocab.txt", "bpe.codes"], {}, "bpe.codes"),
        (["vocab.txt"], {"tokenizer_class": "PhobertTokenizer"}, "PhobertTokenizer"),
        (["vocab.txt"], {"tokenizer_class": "BertJapaneseTokenizer"}, "Split the texts into words"),
        (["vocab.txt"], {"word_tokenizer_type": "mecab"}, "Split the texts into words"),
        (["spiece.model"], {"tokenizer_class": "XLNetTokenizer"}, "found spiece.model"),
        (
            ["vocab.txt"],
            {"tokenizer_class": "RobertaTokenizer"},
            "found tokenizer_config.json, voc",
        ),
    ],
)
def test_tokenizers_that_are_programs_are_refused_with_what_helps(
    tmp_path: Path, files: list[str], settings: dict[str, str], said: str
) -> None:
    folder = write_folder(tmp_path, None, settings)
    for name in files:
        (folder / name).write_text("a b\n")
    assert said in refusal(folder)
    with pytest.raises(DataError):
        find_tokenizer(folder)  # without a library


# --- sentencepiece --------------------------------------------------------------------------------


def learn_sentencepiece(path: Path, *, first: str) -> Path:
    """A model as DeBERTa v3's or XLM-R's are made: nmt_nfkc, and the ids of special pieces."""
    import sentencepiece

    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    names = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    if first == "xlm-roberta":
        ids, names = {"unk_id": 0, "bos_id": 1, "eos_id": 2}, {}
    options: dict[str, Any] = {**ids, **names}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(path.with_suffix("")),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (path.with_suffix(".vocab")).unlink()
    return path


SENTENCEPIECE = {"deberta-v2": "spm.model", "xlm-roberta": "sentencepiece.bpe.model"}


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_a_sentencepiece_model_gives_the_pieces_that_sentencepiece_gives(
    tmp_path: Path, family: str
) -> None:
    from sentencepiece import SentencePieceProcessor

    name = SENTENCEPIECE[family]
    folder = write_folder(tmp_path / "model", model_type=family)
    write(folder / "config.json", {"model_type": family, "pad_token_id": PAD_IDS.get(family, 0)})
    path = learn_sentencepiece(tmp_path / name, first=family)
    shutil.move(path, folder / name)
    own = SentencePieceProcessor(model_file=str(folder / name))
    model = load_tokenizer(folder)
    # Full-width letters and ligatures are what the model's own normaliser is for.
    for text in [*TEXTS, "\uff57here \ufb01ne", "a  b", "①"]:
        found = model.tokenizer.encode(text)
        assert found.tokens[1:-1] == own.encode(text, out_type=str)
        shift = 1 if family == "xlm-roberta" else 0
        unknown = own.unk_id()
        expected = [3 if i == unknown else i + shift for i in own.encode(text)]
        assert found.ids[1:-1] == expected
    assert [model.tokenizer.id_to_token(i) for i in model.tokenizer.encode("").ids] == (
        ["<s>", "</s>"] if shift else ["[CLS]", "[SEP]"]
    )


def test_pieces_that_sentencepiece_does_not_give_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", model_type="deberta-v2")
    shutil.move(learn_sentencepiece(tmp_path / "spm.model", first="deberta-v2"), folder)
    model = load_tokenizer(folder)
    require_same_pieces(model.files, model.tokenizer, [*TEXTS, "\u2460"])
    model.tokenizer.normalizer = normalizers.NFC()  # as transformers 5 leaves it
    with pytest.raises(DataError, match="sentencepiece cuts a text in other pieces"):
        require_same_pieces(model.files, model.tokenizer, ["\u2460"])
    write(folder / "tokenizer_config.json", {"split_by_punct": True})
    assert "can't be proved here" in refusal(folder)


def test_without_sentencepiece_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, model_type="deberta-v2")
    (folder / "spm.model").write_bytes(b"x")
    assert "the vocabulary can't be used" in refusal(folder)
    monkeypatch.setattr("tasks.kd.tokens.files.find_spec", lambda name: None)
    assert "Run: pip install 'stillhouse[sentencepiece]'" in refusal(folder)


# --- two models' tokenizers, positions ------------------------------------------------------------


def test_tokenizers_are_compared_as_they_are_used(tmp_path: Path) -> None:
    own = load_tokenizer(write_folder(tmp_path / "own", wordpiece()))
    same = load_tokenizer(write_folder(tmp_path / "same", wordpiece(), PIECES))
    assert compare_tokenizers(own, same) is None
    bare = wordpiece()
    bare.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 2)]
    )
    other = load_tokenizer(write_folder(tmp_path / "other", bare))
    assert compare_tokenizers(own, other) == ("pieces around a text", '["[CLS]"]')


@pytest.mark.parametrize(
    ("family", "pad", "expected"),
    [("bert", 0, 514), ("roberta", 1, 512), ("xlm-roberta", 1, 512), ("mpnet", 1, 512)],
)
def test_positions_begin_after_the_padding_id_in_some_families(
    tmp_path: Path, family: str, pad: int, expected: int
) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config: dict[str, Any] = {"model_type": family, "pad_token_id": pad}
    folder = write_folder(tmp_path, wordpiece(), settings, max_position_embeddings=514, **config)
    assert load_tokenizer(folder).positions == expected
    write_folder(tmp_path, max_position_embeddings=None, **config)
    assert load_tokenizer(folder).positions is None
