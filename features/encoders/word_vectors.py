"""Static word vectors (word2vec, GloVe, fastText): a text is the mean of its words."""

from __future__ import annotations

import functools
import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.bags import sum_words
from features.encoders.base import Encoder, EncoderSpec, Kind
from features.encoders.huggingface import hash_file
from features.encoders.word_files import WordTable, read_format, read_words
from features.fingerprint import Execution

AT_ONCE = 1 << 16
"""Words whose vectors are gathered at once; a longer text is taken alone."""


class WordVectorsSpec(EncoderSpec):
    """The mean of the vectors of a text's words; words that the file lacks are passed over.

    A text without a known word has no embedding. How many words there were, and how many of them
    were unknown, is counted in each shard's statistics.
    """

    kind: ClassVar[Kind] = "text"

    type: Literal["word_vectors"] = "word_vectors"
    path: Annotated[str, Execution]
    """File of word vectors: word2vec's `.bin` or text, GloVe's text, fastText's `.vec` or `.bin`
    (not `.ftz`), as it is or compressed by gzip. A relative path starts from the YAML's folder.

    The file counts by its content, so where it lies does not enter the fingerprint. The vectors of
    a `.bin` stay in the file, which is mapped; those of text are read into memory."""
    limit: Annotated[int | None, pydantic.Field(ge=1)] = None
    """Only the first words of the file, which has the frequent ones first. None: all."""
    split: Literal["words", "blanks"] = "words"
    """Where words end: at all that is no letter, mark, digit or underscore, but for an apostrophe
    between letters (`words`), or at blanks alone, for texts that have been divided as those were
    that the vectors were learnt from (`blanks`): Chinese, Japanese and Thai, and GloVe's `do n't`.
    """
    case: Literal["either", "keep", "lower"] = "either"
    """Whether a word is looked up as it stands, and in lower case where the file lacks it
    (`either`), as it stands alone (`keep`), or in lower case alone (`lower`)."""
    subwords: bool = True
    """Whether a model of fastText (`.bin`) makes the vector of a word that it lacks from the word's
    n-grams; of no effect for other files."""
    normalize_words: bool = False
    """Whether each word's vector is first scaled to length 1, so that frequent words, which have
    shorter ones, count alike; fastText's `get_sentence_vector` does that."""
    normalize: bool = False
    """Whether an embedding is scaled to length 1."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 4096
    """Rows that are put together at once. It does not enter the fingerprint."""

    @pydantic.field_validator("path")
    @classmethod
    def _make_path_absolute(cls, value: str, info: pydantic.ValidationInfo) -> str:
        base = (info.context or {}).get("folder") or os.getcwd()
        return os.path.normpath(os.path.join(base, os.path.expanduser(value)))

    def weights(self) -> Mapping[str, str]:
        """Content hash of the file. ValueError if there is none, or if it is of no known format."""
        if not os.path.isfile(self.path):
            raise ValueError(f"`path`: there is no file {self.path!r}")
        read_format(self.path)
        return {"vectors": hash_file(self.path)}

    def local_files(self) -> Mapping[str, str]:
        return {os.path.basename(self.path): self.path}

    def with_files(self, folder: str) -> Self:
        path = os.path.join(folder, os.path.basename(self.path))
        return self.model_copy(update={"path": path})

    def load(self) -> Encoder:
        self.weights()
        return _WordVectors(self, table=read_words(self.path, most=self.limit))


@dataclass(frozen=True, kw_only=True, slots=True)
class WordMean:
    """A text's embedding, and what became of its words."""

    embedding_D: np.ndarray
    """float32."""
    words: int
    unknown: int
    """Words that have no vector."""
    spelled: int
    """Words whose vector was made from their n-grams."""

    @property
    def nbytes(self) -> int:
        return int(self.embedding_D.nbytes) + 64


class _WordVectors:
    def __init__(self, spec: WordVectorsSpec, *, table: WordTable) -> None:
        self._spec, self._table = spec, table
        self.dim = table.dim

    def prepare(self, payload: str) -> WordMean:
        (found,) = self.prepare_all([payload])
        if isinstance(found, ValueError):
            raise found
        return found

    def prepare_all(self, payloads: Sequence[str]) -> list[WordMean | ValueError]:
        found: list[WordMean | ValueError] = []
        waiting: list[list[str]] = []
        held = 0
        for text in payloads:
            words = split_words(text, at=self._spec.split)
            if waiting and held + len(words) > AT_ONCE:
                found += self._means(waiting)
                waiting, held = [], 0
            waiting.append(words)
            held += len(words)
        return found + self._means(waiting)

    def size(self, prepared: WordMean) -> int:
        return 1

    def counts(self, prepared: WordMean) -> dict[str, int]:
        """Words, those without a vector, and those with one made of n-grams."""
        return {
            "words": prepared.words,
            "unknown_words": prepared.unknown,
            "words_by_spelling": prepared.spelled,
        }

    def encode(self, batch: list[WordMean]) -> np.ndarray:
        return np.stack([item.embedding_D for item in batch])

    def _means(self, texts: Sequence[list[str]]) -> list[WordMean | ValueError]:
        """Each text's mean. Its words are added up in their order, whatever the other texts are."""
        distinct = list(dict.fromkeys(word for words in texts for word in words))
        column_of, spelled, vectors_WD = self._look_up(distinct)
        found: list[WordMean | ValueError] = []
        columns = [[column_of[word] for word in words if word in column_of] for words in texts]
        sums_BD = sum_words(columns, vectors_WD)
        for words, known, sum_D in zip(texts, columns, sums_BD, strict=True):
            if not known:
                found.append(_without_a_vector(words))
                continue
            mean_D = sum_D / np.float32(len(known))
            length = float(np.linalg.norm(mean_D))
            if length == 0:
                found.append(ValueError("the vectors of its words add up to zero"))
                continue
            found.append(
                WordMean(
                    embedding_D=mean_D / np.float32(length) if self._spec.normalize else mean_D,
                    words=len(words),
                    unknown=len(words) - len(known),
                    spelled=sum(word in spelled for word in words),
                )
            )
        return found

    def _look_up(self, words: Sequence[str]) -> tuple[dict[str, int], set[str], np.ndarray]:
        """The row of each word that has a vector, which of them were spelled, and float32 rows."""
        in_table = [(word, place) for word in words if (place := self._place(word)) is not None]
        rows = [self._table.vectors([place for _, place in in_table])]
        column_of = {word: column for column, (word, _) in enumerate(in_table)}
        spelled: set[str] = set()
        for word in words if self._spec.subwords else ():
            if word in column_of:
                continue
            made = self._table.spelled(word.lower() if self._spec.case == "lower" else word)
            if made is not None:
                column_of[word] = len(column_of)
                spelled.add(word)
                rows.append(made[None, :])
        vectors_WD = np.concatenate(rows)
        if self._spec.normalize_words:
            lengths_W1 = np.linalg.norm(vectors_WD, axis=1, keepdims=True)
            vectors_WD = vectors_WD / np.where(lengths_W1 == 0, np.float32(1), lengths_W1)
        return column_of, spelled, vectors_WD

    def _place(self, word: str) -> int | None:
        places = self._table.places
        if self._spec.case != "lower" and (place := places.get(word)) is not None:
            return place
        return None if self._spec.case == "keep" else places.get(word.lower())


def split_words(text: str, *, at: str) -> list[str]:
    """The words of a text, in Unicode's NFC form; see the field `split`."""
    text = unicodedata.normalize("NFC", text)
    return text.split() if at == "blanks" else _word().findall(text)


@functools.cache
def _word() -> re.Pattern[str]:
    """A word of letters, digits, underscores, marks (vowels in Hindi and Thai) and joiners.

    Marks and joiners are no part of `\\w`.
    """
    marks = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)).startswith("M")
    ]
    letters = rf"[\w{''.join(marks)}\u200c\u200d]+"
    return re.compile(rf"{letters}(?:['’]{letters})*")


def _without_a_vector(words: Sequence[str]) -> ValueError:
    if not words:
        return ValueError("the text has no word")
    shown: Any = ", ".join(repr(word[:40]) for word in words[:3])
    return ValueError(f"the file of vectors knows none of the {len(words)} words, such as {shown}")
