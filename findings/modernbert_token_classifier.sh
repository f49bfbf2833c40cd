#!/usr/bin/env bash
# transformers 5.23.0: a ModernBERT that was tuned to tag tokens loads as a classifier of texts.
# Expected: as for BERT, whose pooler is reported as missing, a report of what the file lacks.
# Seen: no key is missing, unexpected or mismatched, and no text head was ever tuned: both classes
# name their weights head.* and classifier.*, so the tagger's are taken.
# Exits with 1 if that is no longer so.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'PYTHON'
import sys

from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForTokenClassification,
    ModernBertConfig,
    ModernBertForTokenClassification,
)

size = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
size |= {"num_hidden_layers": 2, "num_labels": 3, "pad_token_id": 0}


def report(name, model):
    """What transformers says of a tagger that is loaded as a classifier of texts."""
    model.save_pretrained(name)
    _, told = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    keys = {kind: sorted(map(str, told[kind])) for kind in told if told[kind]}
    print(f"{name}: saved as {model.config.architectures}, told {keys or 'nothing'}")
    return keys


bert = report("bert", BertForTokenClassification(BertConfig(**size)))
modern = report(
    "modernbert",
    ModernBertForTokenClassification(
        ModernBertConfig(**size, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    ),
)
as_seen = bool(bert) and not modern
print("as found" if as_seen else "CHANGED")
sys.exit(0 if as_seen else 1)
PYTHON
