"""Where the field's files come from: the one table of addresses, with licence, size and digest.

Sizes and digests are those that are published, or those of the files in the commit that the address
names. Nothing here asks the net.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Source:
    """Where a file of the field comes from. path: below DIR. licence: of what is in it, as its
    authors say. size: bytes, digest: as download.Wanted has them, both empty if nobody says.
    """

    what: str
    url: str
    path: str
    licence: str
    size: int | None = None
    digest: str = ""


POPE_AT = "https://raw.githubusercontent.com/RUCAIBox/POPE/3df3ba1b110ecce25696989577fad583b67d4239"
EFUF_AT = "https://huggingface.co/datasets/starreeze/efuf-unlearning-30k/resolve/main"
CHAIR_AT = (
    "https://raw.githubusercontent.com/LisaAnne/Hallucination/"
    "6e4d33c4bedf6dfcd24c61bf527f40714717be47"
)
# The one table. COCO's address is the one that LisaAnne/Hallucination's README gives, which is
# COCO's own (cocodataset.org/#download; its host has no certificate, so http); its MD5 is the ETag
# that Amazon S3 answers with, and the one that torchvision for R, PaddlePaddle and many others
# check. POPE's and CHAIR's addresses name the commit; sizes and SHA-256 are those of the files in
# it; POPE's licence is its LICENSE, CHAIR's stands in its README. EFUF's address is the one in
# starreeze/efuf's readme ("Datasets Preparation") in the form that the hub resolves; its licence is
# the one on the data set's card, and how large its files are was not found.
SOURCES = (
    Source(
        "COCO 2014: annotations",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        "annotations_trainval2014.zip",
        "CC BY 4.0 (cocodataset.org/#termsofuse)",
        252872794,
        "md5:0a379cfc70b0e71301e0f377548639bd",
    ),
    Source(
        "POPE: random",
        f"{POPE_AT}/output/coco/coco_pope_random.json",
        "pope/coco_pope_random.json",
        "MIT",
        368166,
        "sha256:ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994",
    ),
    Source(
        "POPE: popular",
        f"{POPE_AT}/output/coco/coco_pope_popular.json",
        "pope/coco_pope_popular.json",
        "MIT",
        370190,
        "sha256:72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753",
    ),
    Source(
        "POPE: adversarial",
        f"{POPE_AT}/output/coco/coco_pope_adversarial.json",
        "pope/coco_pope_adversarial.json",
        "MIT",
        370401,
        "sha256:420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8",
    ),
    Source("EFUF: sub-sentences", f"{EFUF_AT}/pos_neg.json", "efuf/pos_neg.json", "GPL-3.0"),
    Source("EFUF: captions", f"{EFUF_AT}/sentences.json", "efuf/sentences.json", "GPL-3.0"),
    Source(
        "CHAIR: synonyms",
        f"{CHAIR_AT}/data/synonyms.txt",
        "chair/synonyms.txt",
        "BSD 2-Clause",
        3577,
        "sha256:b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2",
    ),
)
# Each image's own address stands in the annotation files, as its coco_url, below
# http://images.cocodataset.org/train2014/ and val2014/; S3 says each one's MD5.
IMAGE_LICENCE = "Flickr's terms; each image's own in the annotations"


def mirrored(url: str, mirrors: Mapping[str, str]) -> str:
    """The address of a file at a mirror. mirrors: host -> the address that has the host's paths
    below it; "" -> the address that has folders HOST for all others, as `wget --mirror` lays out.
    """
    parts = urlsplit(url)
    base = mirrors.get(parts.netloc)
    if base is None and "" in mirrors:
        base = f"{mirrors[''].rstrip('/')}/{parts.netloc}"
    if base is None:
        return url
    return base.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")
