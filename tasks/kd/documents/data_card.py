"""The data card: what prepare_data made of the sources."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tasks.kd.documents.document import Count, Document, Fraction, Part, Sha256


class SplitCard(Part):
    """One split, as it is trained or judged on."""

    examples: Annotated[Count, Field(description="texts")]
    unlabelled: Annotated[Count, Field(description="of them, texts of random tokens")]
    tokens: Annotated[Count, Field(description="tokens of all texts, special ones included")]
    longest_tokens: Annotated[Count, Field(description="tokens of the longest text")]
    label_counts: Annotated[dict[str, Count], Field(description="texts of each label")]
    cut_fraction: Annotated[Fraction, Field(description="share of texts cut at the maximum length")]
    tokens_for_99_percent: Annotated[
        Count, Field(description="tokens of a length that keeps 99 % of the texts whole")
    ]
    unknown_fraction: Annotated[
        float, Field(ge=0, description="unknown tokens per token of the texts' own")
    ]


class Splits(Part):
    """The three splits."""

    train: SplitCard
    dev: SplitCard
    test: SplitCard


class Replaced(Part):
    """Texts of which a part can't be encoded, and has U+FFFD in its place."""

    train: Count
    test: Count


class DataCard(Document):
    """The splits, their labels and tokens, and what a person should know of them."""

    TITLE: ClassVar[str] = "the data card"
    FILE: ClassVar[str] = "data_card.json"

    splits: Splits
    dropped: Annotated[
        dict[str, Count], Field(description="rows left out of the training file, by reason")
    ]
    dropped_from_test: Annotated[
        dict[str, Count], Field(description="rows left out of the test file, by reason")
    ]
    replaced: Annotated[Replaced, Field(description="texts with U+FFFD put into them")]
    warnings: Annotated[tuple[str, ...], Field(description="sentences on what is odd")]
    labels: Annotated[tuple[str, ...], Field(description="names of the labels, in order of id")]
    pad_token_id: Annotated[Count, Field(description="id of the token that fills a batch")]
    max_length_tokens: Annotated[Count, Field(description="tokens at which texts are cut")]
    truncation_side: Annotated[
        Literal["left", "right"], Field(description="the end of a long text that is cut off")
    ]
    tokenizer_sha256: Annotated[Sha256, Field(description="digest of the folder tokenizer/")]
    encoded_sha256: Annotated[
        Sha256, Field(description="digest of the training texts' token ids, in no order")
    ]
    test_sha256: Annotated[
        Sha256, Field(description="digest of the test split: example ids, labels and their names")
    ]
