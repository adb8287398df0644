"""Text normalisation before answers are compared."""

from __future__ import annotations

import re
import string

_ENGLISH_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE_PUNCTUATION = str.maketrans(
    "",
    "",
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～"
    + "｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.",
)


def normalize_english(text: str, *, lowercase: bool = True) -> str:
    """Text without ASCII punctuation and English articles, words one space apart (SQuAD's rule)."""
    if lowercase:
        text = text.lower()
    return " ".join(_ARTICLES.sub(" ", text.translate(_ENGLISH_PUNCTUATION)).split())


def normalize_chinese(text: str) -> str:
    """Lower-case text without ASCII and Chinese punctuation and without white space (LongBench's rule)."""
    return "".join(text.lower().translate(_CHINESE_PUNCTUATION).split())
