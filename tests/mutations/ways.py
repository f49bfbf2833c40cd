"""Ways in which people save a teacher, and what its owner sees of each.

The owner's tokens come from `tokenizers` or `sentencepiece` by the files that version 4 of
transformers reads: tokenizer.json as it stands where there is one (version 5 makes parts of it anew
from the class), else the vocabulary's own format. The owner's weights are those in memory after the
tuning, or read tensor by tensor where they are saved in fewer bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.mutations import vocabularies as made
from tests.mutations.owner import model_of
from tests.mutations.task import MAX_LENGTH
from tests.mutations.teachers import FORMS, Words, save_tokenizer, tune, words_of

WORDPIECE = ("bert", "distilbert", "electra", "mpnet")
SLOW = "a tokenizer of Python alone, which no tokenizer.json can say"


@dataclass(frozen=True)
class Owner:
    """How the owner reads texts and answers them."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    model: Any
    left: bool = False


@dataclass(frozen=True)
class Way:
    """A form of a teacher's folder. `labels`: the recipe's map; `slow`: it can't be served."""

    family: str
    name: str
    save: Callable[[Path], Owner]
    labels: dict[str, str] | None = None
    slow: bool = False

    @property
    def title(self) -> str:
        return f"{self.family}: {self.name}"


def ways() -> list[Way]:
    """All forms."""
    found = [Way(family, "files of version 4", _whole(family)) for family in FORMS]
    found += [Way(family, "tokenizer.json alone", _alone(family)) for family in FORMS]
    found += [Way(x, "vocabulary alone", _vocabulary(x)) for x in (*WORDPIECE, "roberta")]
    found += [
        Way("bert", "vocab.txt without configuration, cased", _bare(lower=False)),
        Way("bert", "vocab.txt without configuration, uncased", _bare(lower=True)),
        Way("bert", "tokenizer.json without configuration, cased", _cased_json),
        Way("xlm-roberta", "sentencepiece.bpe.model alone", _sentencepiece("xlm-roberta")),
        Way("deberta-v2", "spm.model alone", _sentencepiece("deberta-v2")),
        Way("roberta", "a WordPiece tokenizer.json", _other_kind("roberta", "bert")),
        Way("bert", "a byte-level tokenizer.json", _other_kind("bert", "modernbert")),
        Way("electra", "a Unigram tokenizer.json", _other_kind("electra", "deberta-v2")),
        Way("bert", "PreTrainedTokenizerFast", _as_class("bert", "PreTrainedTokenizerFast")),
        Way("roberta", "PreTrainedTokenizerFast", _as_class("roberta", "PreTrainedTokenizerFast")),
        Way("mpnet", "class names with Fast", _as_class("mpnet", "MPNetTokenizerFast")),
    ]
    found += [
        Way(x, "as version 5 saves it again", _again(x)) for x in ("bert", "roberta", "mpnet")
    ]
    found += [
        Way(x, "as version 5 saves it again", _again(x)) for x in ("xlm-roberta", "deberta-v2")
    ]
    found += [Way(x, "truncation_side left", _left(x)) for x in ("bert", "roberta", "deberta-v2")]
    found += [Way("bert", f"weights in {x}", _typed("bert", x)) for x in ("float16", "bfloat16")]
    found += [
        Way("modernbert", "weights in float16", _typed("modernbert", "float16")),
        Way("roberta", "weights in shards", _sharded("roberta")),
        Way("bert", "position_ids among the weights", _with_positions),
        Way("bert", "gamma and beta for the norms", _old_norms),
        Way("bert", "an added token", _added("bert")),
        Way("roberta", "an added token", _added("roberta")),
        Way("distilbert", "LABEL_0 and so on", _numbered, labels=LABEL_NAMES),
        Way("roberta", "vocab.txt and bpe.codes (BERTweet)", _bertweet, slow=True),
        Way("bert", "word splitter MeCab (Japanese)", _japanese, slow=True),
    ]
    return found


LABEL_NAMES = {"LABEL_0": "billing", "LABEL_1": "delivery", "LABEL_2": "login"}


def _teacher(family: str, folder: Path, tokenizer: Tokenizer, *, left: bool = False) -> Owner:
    """Tune, and save the weights alone."""
    words = words_of(tokenizer, left=left)
    model = tune(family, words, left=left)
    model.save_pretrained(folder)
    return Owner(words.encode, model, left)


def _whole(family: str, *, kind: str | None = None, left: bool = False) -> Callable[[Path], Owner]:
    def save(folder: Path) -> Owner:
        tokenizer = FORMS[family].tokenizer()
        owner = _teacher(family, folder, tokenizer, left=left)
        name = kind or FORMS[family].tokenizer_class
        save_tokenizer(folder, tokenizer, name, side="left" if left else None)
        return owner

    return save


def _left(family: str) -> Callable[[Path], Owner]:
    return _whole(family, left=True)


def _as_class(family: str, name: str) -> Callable[[Path], Owner]:
    return _whole(family, kind=name)


def _keep(folder: Path, *names: str) -> None:
    """Of the tokenizer's files these alone."""
    for path in folder.iterdir():
        if path.name not in (*names, "config.json", "model.safetensors"):
            path.unlink()


def _alone(family: str) -> Callable[[Path], Owner]:
    def save(folder: Path) -> Owner:
        owner = _whole(family)(folder)
        _keep(folder, "tokenizer.json")
        return owner

    return save


def _vocabulary(family: str) -> Callable[[Path], Owner]:
    def save(folder: Path) -> Owner:
        owner = _whole(family)(folder)
        _keep(folder, "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json")
        return owner

    return save


def _bert(folder: Path, *, lower: bool) -> Owner:
    tokenizer = made.wordpiece(made.BERT_SPECIAL, lower=lower)
    owner = _teacher("bert", folder, tokenizer)
    save_tokenizer(folder, tokenizer, "BertTokenizer", side=None)
    return owner


def _bare(*, lower: bool) -> Callable[[Path], Owner]:
    def save(folder: Path) -> Owner:
        owner = _bert(folder, lower=lower)
        _keep(folder, "vocab.txt")
        return owner

    return save


def _cased_json(folder: Path) -> Owner:
    owner = _bert(folder, lower=False)
    _keep(folder, "tokenizer.json", "vocab.txt")
    return owner


def _other_kind(family: str, tokens: str) -> Callable[[Path], Owner]:
    """One family's weights, another's tokenizer.json, the class of the first."""

    def save(folder: Path) -> Owner:
        tokenizer = FORMS[tokens].tokenizer()
        owner = _teacher(family, folder, tokenizer)
        save_tokenizer(folder, tokenizer, FORMS[family].tokenizer_class, side=None)
        _keep(folder, "tokenizer.json", "tokenizer_config.json")
        return owner

    return save


def _again(family: str) -> Callable[[Path], Owner]:
    """Read and written by version 5, whose tokenizer.json the teacher is then tuned with."""

    def save(folder: Path) -> Owner:
        from transformers import AutoTokenizer

        first = FORMS[family].tokenizer()
        _teacher(family, folder, first)
        save_tokenizer(folder, first, FORMS[family].tokenizer_class, side=None)
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        _keep(folder)
        loaded.save_pretrained(folder)
        return _teacher(family, folder, Tokenizer.from_file(str(folder / "tokenizer.json")))

    return save


def _typed(family: str, name: str) -> Callable[[Path], Owner]:
    def save(folder: Path) -> Owner:
        owner = _whole(family)(folder)
        kind, file = getattr(torch, name), folder / "model.safetensors"
        save_file({key: x.to(kind) for key, x in load_file(file).items()}, file, {"format": "pt"})
        return Owner(owner.encode, model_of(folder))

    return save


def _sharded(family: str) -> Callable[[Path], Owner]:
    def save(folder: Path) -> Owner:
        owner = _whole(family)(folder)
        (folder / "model.safetensors").unlink()
        owner.model.save_pretrained(folder, max_shard_size="60KB")
        return owner

    return save


def _renamed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def _with_positions(folder: Path) -> Owner:
    owner = _whole("bert")(folder)
    positions = {"bert.embeddings.position_ids": torch.arange(40)[None]}
    _renamed(folder, lambda tensors: tensors | positions)
    return owner


def _old_norms(folder: Path) -> Owner:
    owner = _whole("bert")(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def name(key: str) -> str:
        new = next((new for new in old if key.endswith(new)), None)
        return key if new is None else f"{key.removesuffix(new)}{old[new]}"

    _renamed(folder, lambda tensors: {name(key): value for key, value in tensors.items()})
    return owner


def _added(family: str) -> Callable[[Path], Owner]:
    """A token of its own row, as `add_tokens` and `resize_token_embeddings` leave it."""

    def save(folder: Path) -> Owner:
        tokenizer = FORMS[family].tokenizer()
        tokenizer.add_tokens(["e-mail"])
        owner = _teacher(family, folder, tokenizer)
        save_tokenizer(folder, tokenizer, FORMS[family].tokenizer_class, side=None)
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokens = {str(token.pop("id")): token for token in document["added_tokens"]}
        settings["added_tokens_decoder"] = tokens
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return owner

    return save


def _numbered(folder: Path) -> Owner:
    owner = _whole("distilbert")(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("id2label", "label2id"):
        config.pop(name)
    config["num_labels"] = 3
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return owner


def _sentencepiece(family: str) -> Callable[[Path], Owner]:
    """As these are published: the file of sentencepiece, and which kind it is."""

    def save(folder: Path) -> Owner:
        folder.mkdir(parents=True, exist_ok=True)
        xlm = family == "xlm-roberta"
        file = folder / ("sentencepiece.bpe.model" if xlm else "spm.model")
        words = (_xlm_words if xlm else _deberta_words)(file)
        model = tune(family, words)
        model.save_pretrained(folder)
        if not xlm:
            settings = {"do_lower_case": False, "vocab_type": "spm"}
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return Owner(words.encode, model)

    return save


def _processor(file: Path, **special: Any) -> Any:
    import io

    import sentencepiece

    writer = io.BytesIO()
    sentences = [word for word in made.WORDS for _ in range(6)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *".!?'-,abcdefghijklmnopqrstuvwxyz"]),
        model_writer=writer,
        vocab_size=170,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        num_threads=1,
        **special,
    )
    file.write_bytes(writer.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())


def _xlm_words(file: Path) -> Words:
    """Fairseq's rows: four special ones, then the pieces from their fourth on; the mask last."""
    pieces = _processor(file)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found = [[i + 1 if i else 3 for i in pieces.encode(text)] for text in texts]
        return [[0, *ids[: MAX_LENGTH - 2], 2] for ids in found]

    return Words(encode, pieces.get_piece_size() + 2, 1)


def _deberta_words(file: Path) -> Words:
    """The file's own rows, in which it has the special pieces, and the mask after them."""
    names = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    pieces = _processor(file, pad_id=0, bos_id=1, eos_id=2, unk_id=3, **names)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [[1, *pieces.encode(text)[: MAX_LENGTH - 2], 2] for text in texts]

    return Words(encode, pieces.get_piece_size() + 1, 0)


def _bertweet(folder: Path) -> Owner:
    owner = _whole("roberta")(folder)
    _keep(folder)
    (folder / "vocab.txt").write_text("the 10\nparcel@@ 4\n")
    (folder / "bpe.codes").write_text("t h 10\nth e</w> 9\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertweetTokenizer"}')
    return owner


def _japanese(folder: Path) -> Owner:
    owner = _whole("bert")(folder)
    _keep(folder, "vocab.txt")
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": "wordpiece",
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return owner
