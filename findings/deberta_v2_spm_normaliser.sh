#!/usr/bin/env bash
# transformers 5.23.0: a DeBERTa v2/v3 tokenizer that is made of spm.model leaves out the model's own
# normaliser (nmt_nfkc, in its precompiled_charsmap).
# Expected: the pieces that the sentencepiece library gives of the same file.
# Seen: a text with a ligature, which that normaliser takes apart, has an unknown piece.
# Exits with 1 if that is no longer so.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'PYTHON'
import json
import os
import sys

import sentencepiece
from transformers import AutoTokenizer

text = "\ufb01ne weather 1"
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["fine weather 1", "we are fine", "the weather is fine"] * 40),
    model_prefix="spm", vocab_size=40, hard_vocab_limit=False, minloglevel=2,
    pad_id=0, bos_id=1, eos_id=2, unk_id=3,
    pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
)
os.mkdir("model")
os.rename("spm.model", "model/spm.model")
json.dump({"model_type": "deberta-v2"}, open("model/config.json", "w"))
json.dump({"tokenizer_class": "DebertaV2Tokenizer"}, open("model/tokenizer_config.json", "w"))

own = sentencepiece.SentencePieceProcessor(model_file="model/spm.model")
loaded = AutoTokenizer.from_pretrained("model")
expected = own.encode(text)
found = loaded(text, add_special_tokens=False)["input_ids"]
print("sentencepiece:", own.encode(text, out_type=str), expected)
print("transformers: ", loaded.convert_ids_to_tokens(found), found)
as_seen = own.unk_id() not in expected and own.unk_id() in found
print("as found" if as_seen else "CHANGED")
sys.exit(0 if as_seen else 1)
PYTHON
