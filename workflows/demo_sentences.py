"""Written sentences that mention a digit, in English, Chinese and Japanese.

Most say the digit plainly, in one of the ways people write it. Some name two digits and
leave it to the wording which is meant, some waver between two, some name none, and some
are mistyped: text alone is not enough.
"""

from __future__ import annotations

import numpy as np

Templates = dict[str, tuple[str, ...]]
"""Language → sentences to be filled in."""

FULL_WIDTH = "０１２３４５６７８９"

NAMES = {
    "en": ("zero one two three four five six seven eight nine",),
    "zh": (
        "零 一 二 三 四 五 六 七 八 九",
        "零 一 二 三 四 五 六 七 八 九",
        "零 一 二 三 四 五 六 七 八 九",
        "〇 壹 贰 叁 肆 伍 陆 柒 捌 玖",
    ),
    "ja": (
        "〇 一 二 三 四 五 六 七 八 九",
        "れい いち に さん よん ご ろく なな はち きゅう",
        "ゼロ イチ ニ サン ヨン ゴ ロク ナナ ハチ キュウ",
    ),
}
"""Language → the sets of number words used in it, each in the order 0 to 9."""

HOMOPHONES = {"zh": str.maketrans("零一二三四五六七八九", "铃衣儿山是无流其吧酒")}
"""What a Chinese input method gives for the right syllable, chosen wrongly."""

PLAIN: Templates = {
    "en": (
        *("The number is {d}.", "I wrote {d} here.", "This one is a {d}", "It reads {d}, I think."),
        *("{d}", "Count: {d}", "He said {d} on the phone.", "Line {n} of the form says {d}"),
    ),
    "zh": (
        *("这个数字是{d}。", "我写的是{d}", "请填{d}。", "上面写着{d}。", "{d}", "一共{d}个"),
        *("电话里他说{d}。", "第{n}行写的是{d}。"),
    ),
    "ja": (
        *("この数字は{d}です。", "{d}と書きました。", "{d}", "全部で{d}つ", "たぶん{d}だと思う。"),
        *("ここに{d}を入れる。", "電話では{d}と言った。", "{n}行目は{d}です。"),
    ),
}
"""Sentences with the digit `{d}`, a few with a number of two digits `{n}` beside it."""

CORRECTED: Templates = {
    "en": (
        *("Not {o} but {d}.", "{d}, not {o}.", "It looked like {o}, yet it is {d}."),
        *("{o}? No, {d}.", "First {o} was entered, the right one is {d}", "{d} (was {o})"),
    ),
    "zh": (
        *("不是{o}，是{d}。", "是{d}，不是{o}。", "看着像{o}，其实是{d}。"),
        *("{o}？不对，{d}。", "先填了{o}，后来改成{d}", "{d}（原来是{o}）"),
    ),
    "ja": (
        *("{o}ではなく{d}です。", "{d}です、{o}ではありません。", "{o}に見えるが{d}だ。"),
        *("{o}？いや、{d}。", "最初は{o}、正しくは{d}", "{d}（{o}から訂正）"),
    ),
}
"""Sentences that name another digit `{o}` too; the wording says which is meant."""

UNSURE: Templates = {
    "en": ("{a} or {b}, hard to tell.", "Either {a} or {b}", "{a}/{b}?"),
    "zh": ("{a}还是{b}，看不清。", "不是{a}就是{b}", "{a}或{b}？"),
    "ja": ("{a}か{b}、よく分からない。", "{a}または{b}", "{a}／{b}？"),
}
"""Sentences that name the digit and another, and do not say which is meant."""

VAGUE: Templates = {
    "en": ("The number on the slip.", "same as yesterday", "See the drawing."),
    "zh": ("纸条上的数字。", "和昨天一样", "请看图。"),
    "ja": ("紙に書いてある数字です。", "昨日と同じ", "絵を見てください。"),
}
"""Sentences that name no digit."""

TEMPLATES = {
    "plain": PLAIN,
    "corrected": CORRECTED,
    "unsure": UNSURE,
    "vague": VAGUE,
}
"""Kind of sentence → language → sentences to be filled in."""

SHARES = {"plain": 0.86, "corrected": 0.07, "unsure": 0.04, "vague": 0.03}
"""How often each kind of sentence is written."""

MISTYPED = 0.08
"""Share of the number words with a slip in them."""


def write_sentence(*, digit: int, language: str, rng: np.random.Generator) -> str:
    """A sentence in `language` (en, zh or ja) that mentions, or should mention, the digit."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    said = _write_digit(digit, language=language, rng=rng)
    other = _write_digit((digit + int(rng.integers(1, 10))) % 10, language=language, rng=rng)
    number = int(rng.integers(10, 60))
    first, second = (said, other) if rng.random() < 0.5 else (other, said)
    templates = TEMPLATES[kind][language]
    template = templates[rng.integers(len(templates))]
    return template.format(d=said, o=other, n=number, a=first, b=second)


def _write_digit(digit: int, *, language: str, rng: np.random.Generator) -> str:
    numeral = rng.random()
    if numeral < 0.4:
        return str(digit)
    if numeral < (0.42 if language == "en" else 0.5):
        return FULL_WIDTH[digit]
    names = NAMES[language]
    word = names[rng.integers(len(names))].split()[digit]
    return _mistype(word, language=language, rng=rng) if rng.random() < MISTYPED else word


def _mistype(word: str, *, language: str, rng: np.random.Generator) -> str:
    """The word with a wrong homophone, a letter lost, or two letters exchanged."""
    if language in HOMOPHONES:
        return word.translate(HOMOPHONES[language])
    if len(word) < 2:
        return word
    at = int(rng.integers(len(word) - 1))
    if rng.random() < 0.5:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
