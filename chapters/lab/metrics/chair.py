"""Naming the objects of a caption, and counting those that are not there: CHAIR (arXiv 1809.02156).

Curation, the truth of a picture and the scores all name objects by one `Convention`. There are
three: the official script's and EFUF's for COCO, and "exact" for a closed vocabulary such as the
microworld's. A name comes with its place in the caption, so that its clause can be found.

The libraries that split captions are loaded when the first caption is read: nothing else here needs
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..files import read_text

Span = tuple[int, int]
Word = tuple[str, Span]  # in lower case, and where it stands in the caption
# The 80 categories and their plain synonyms; the official list is read by --synonyms.
SYNONYMS = Path(__file__).parent / "coco_nouns.txt"
DOUBLE_WORDS = (
    "motor bike, motor cycle, air plane, traffic light, street light, traffic signal, "
    "stop light, fire hydrant, stop sign, parking meter, suit case, sports ball, baseball "
    "bat, baseball glove, tennis racket, wine glass, hot dog, cell phone, mobile phone, "
    "teddy bear, hair drier, potted plant, bow tie, laptop computer, home plate, train "
    "track"
).split(", ")
ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()
READ_AS = {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
READ_AS |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
READ_AS |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
EFUF_SYNONYMS = {
    "brother": "person",
    "pedestrian": "person",
    "coffee table": "dining table",
    "remote control": "remote",
}


@dataclass(frozen=True)
class Convention:
    """How a caption becomes objects. Source: LisaAnne/Hallucination utils/chair.py; starreeze/efuf
    evaluate/eval_auto.py.
    """

    name: str
    node: dict[str, str]  # word or phrase -> the object that it names
    double: dict[str, str] = field(repr=False)  # two words -> what they are read as
    split: Callable[[str], list[Word]] = field(repr=False)
    singular: Callable[[str], str] = field(repr=False)
    repeats: bool = True  # score a word that stands twice in a caption twice

    def find(self, caption: str) -> list[tuple[str, Span]]:
        """(object, (start, end)) of each mention in order, repeats kept; caption[start:end] is all
        that names it.
        """
        return [(self.node[word], span) for word, span in self._naming(caption)]

    def mentions(self, caption: str) -> list[str]:
        """The objects that are scored, in order: those of `find`, for EFUF each word once."""
        words = [word for word, _ in self._naming(caption)]
        return [self.node[word] for word in (words if self.repeats else dict.fromkeys(words))]

    def truth(self, categories: Iterable[str], captions: Iterable[str]) -> set[str]:
        """What a picture shows: its annotated categories and what its human captions mention.

        Raises ValueError, in the official convention, for a category that the synonyms lack.
        """
        told = {noun for caption in captions for noun in self.mentions(caption)}
        return {self._category(noun) for noun in categories} | told

    def _category(self, noun: str) -> str:
        """The official script passes a category through the synonyms; the others take it as it
        is. One that no caption can name would count every mention of it as wrong.
        """
        if noun not in (self.node if self.name == "official" else self.node.values()):
            raise ValueError(
                f"the category {noun!r} is not in the synonyms: add a line for it, or give the"
                " official list by --synonyms."
            )
        return self.node[noun] if self.name == "official" else noun

    def _naming(self, caption: str) -> list[Word]:
        """The words and phrases that name an object, singular, with their places."""
        words = [(self.singular(word), span) for word, span in self.split(caption)]
        merged, at = [], 0
        while at < len(words):  # greedily, from the left
            pair = " ".join(word for word, _ in words[at : at + 2])
            n = 2 if pair in self.double else 1
            word, (start, _) = words[at]
            merged.append((self.double.get(pair, word), (start, words[at + n - 1][1][1])))
            at += n
        said = {word for word, _ in merged}
        # "the seat of the toilet" is no chair
        skipped = "seat" if {"toilet", "seat"} <= said else None
        return [found for found in merged if found[0] in self.node and found[0] != skipped]


@lru_cache(maxsize=1)
def _tokenizers():
    """NLTK's splitters into sentences and into words.

    nltk.word_tokenize has the same two, and gives the first its downloaded English parameters: 156
    abbreviations ("dr.", "st.") that end no sentence, and what may follow a number or an initial.
    None of them is an object's word. They decide whether a period is a token of its own, and no
    object comes or goes by it.
    """
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


# Plain words, commas behind some and a period at the end; none that NLTK cuts in two ("can not")
PLAIN = re.compile(
    r"(?!.*\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b)[a-z0-9]+(?:,? [a-z0-9]+)*\.?"
)
PIECE = re.compile(r"[a-z0-9]+|[,.]")


def _word_spans(sentence: str) -> list[Span]:
    """The places of NLTK's tokens. Its two dozen substitutions are the time that scoring takes, and
    a plain sentence, as most are, needs none of them: a test holds the two to the same tokens.
    """
    if PLAIN.fullmatch(sentence):
        return [match.span() for match in PIECE.finditer(sentence)]
    return list(_tokenizers()[1].span_tokenize(sentence))


def _nltk_words(caption: str) -> list[Word]:
    """nltk.word_tokenize of the caption in lower case, with places in the caption as it stands."""
    text = caption.lower()
    # Whose lower case each letter is: that of a dotted capital I has two
    origin = [at for at, letter in enumerate(caption) for _ in letter.lower()]
    spans = [
        (start + a, start + b)
        for start, end in _tokenizers()[0].span_tokenize(text)
        for a, b in _word_spans(text[start:end])
    ]
    return [(text[a:b], (origin[a], origin[b - 1] + 1)) for a, b in spans]


def _whole_words(caption: str) -> list[Word]:
    return [(match.group().lower(), match.span()) for match in re.finditer(r"\w+", caption)]


@lru_cache(maxsize=1 << 16)  # rules over rules, and captions share their words
def _pattern_singular(word: str) -> str:
    """pattern.en's singular, which the official script takes, with its quirks ("glass" -> "glas");
    textblob carries its rules, but for words on -ie and compounds of bus.
    """
    from textblob.en.inflect import singularize

    found = singularize(word)
    if found.endswith("ie") and word.endswith("ies"):
        return word
    return word[:-2] if word.endswith("buses") and found == "bus" else found


@lru_cache(maxsize=1)
def _pluralizer():
    from pluralizer import Pluralizer

    return Pluralizer()


@lru_cache(maxsize=1 << 16)
def _noun_lemma(word: str) -> str:
    """A noun's singular: EFUF's is WordNet's, here pluralizer's."""
    return _pluralizer().singular(word)


def read_synonyms(path: str | Path = SYNONYMS) -> dict[str, str]:
    """Word -> object, from lines of "object, synonym, synonym" split at ", " exactly as the
    official script splits them.
    """
    node = {}
    for row, line in enumerate(read_text(path).splitlines(), 1):
        names = line.strip().split(", ")
        if not names[0]:
            raise ValueError(
                f"{path}, row {row}: empty. Each line holds an object, then its synonyms, separated"
                " by ', '."
            )
        node |= dict.fromkeys(names, names[0])
    if not node:
        raise ValueError(f"{path}: holds no object. Each line holds one, then its synonyms.")
    return node


def convention(name: str, synonyms: str | Path = SYNONYMS) -> Convention:
    """The "official" or the "efuf" convention; raises ValueError for another name."""
    node = read_synonyms(synonyms)
    if name == "official":
        double = {pair: pair for pair in DOUBLE_WORDS} | READ_AS
        return Convention(name, node, double, _nltk_words, _pattern_singular)
    if name == "efuf":
        node |= {word: node.get(noun, noun) for word, noun in EFUF_SYNONYMS.items()}
        phrases = [word for word in (*node, "home plate", "train track") if word.count(" ") == 1]
        double = {pair: pair for pair in phrases} | READ_AS
        return Convention(name, node, double, _nltk_words, _noun_lemma, repeats=False)
    raise ValueError(f"--convention {name}: the conventions are official and efuf.")


def exact(objects: Iterable[str]) -> Convention:
    """The convention of a closed vocabulary: each object is one word, named by itself alone, as it
    stands.

    Raises ValueError for an object that is no single word in lower case: no caption could name it.
    """
    node = {noun: noun for noun in objects}
    for noun in node:
        if _whole_words(noun) != [(noun, (0, len(noun)))]:
            raise ValueError(
                f"the object {noun!r} is no single word in lower case: rename it, or use one of"
                " CHAIR's conventions."
            )
    return Convention("exact", node, {}, _whole_words, str)


def chair(mentions: Sequence[Sequence[str]], truths: Sequence[Collection[str]]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i and recall, as shares in 0..1.

    mentions: the objects that each caption names (Convention.mentions). truths: the objects in each
    picture (Convention.truth). chair_s: captions with at least one hallucinated object / captions.
    chair_i: hallucinated mentions / mentions, pooled over all captions (nan when nothing is
    mentioned). recall: mean share of the picture's objects that its caption names. Raises
    ValueError if the lists differ in length or are empty. Source: arXiv 1809.02156,
    LisaAnne/Hallucination utils/chair.py.
    """
    if len(mentions) != len(truths) or not mentions:
        raise ValueError(
            f"chair: {len(mentions)} captions and {len(truths)} pictures: give one set of true"
            " objects per caption."
        )
    wrong = [
        [noun for noun in said if noun not in there]
        for said, there in zip(mentions, truths, strict=True)
    ]
    n_said = sum(map(len, mentions))
    found = [
        len(set(said) & set(there)) / len(set(there))
        for said, there in zip(mentions, truths, strict=True)
        if there
    ]
    return {
        "chair_s": sum(map(bool, wrong)) / len(wrong),
        "chair_i": sum(map(len, wrong)) / n_said if n_said else float("nan"),
        "recall": sum(found) / len(found) if found else float("nan"),
        "n": len(wrong),
    }
