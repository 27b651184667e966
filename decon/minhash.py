"""Near-duplicates of eval items among whole documents, by MinHash and LSH (datasketch).

    near = NearItems(index);  near.find(tokenise("Jane buys 3 apples ..."))  ->  [(text, 0.81)]

LSH proposes pairs, the exact Jaccard index of their word shingles decides. A document much
shorter or longer than every item cannot reach the threshold and costs no signature, so that
in a corpus of long documents this adds little to a scan. An altered item inside a longer
document is therefore not found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decon.ngrams import ALL_BITS, Words, gram_hashes, tokenise
from decon.policy import Near

if TYPE_CHECKING:
    from datasketch import MinHash

    from decon.index import ReferenceIndex


def shingles(words: Words, length: int) -> NDArray[np.uint64]:
    """The distinct hashes of all runs of `length` words, sorted."""
    return np.unique(gram_hashes(words.hashes, length, np.uint64(ALL_BITS)))


class NearItems:
    """The texts of an index, ready to be asked which of them a document nearly is."""

    def __init__(self, index: ReferenceIndex, near: Near) -> None:
        from datasketch import MinHash, MinHashLSH

        self._near = near
        # datasketch hashes what it is given; our shingles are hashes already.
        self._blank = MinHash(num_perm=near.permutations, seed=near.seed, hashfunc=int)
        # Rather a needless comparison than a missed pair.
        self._lsh = MinHashLSH(near.threshold, near.permutations, weights=(0.1, 0.9))
        self._sets = [shingles(tokenise(text.text), near.shingle) for text in index.texts]
        sizes = [len(held) for held in self._sets if len(held)]
        self._least = near.threshold * min(sizes, default=0)
        self._most = max(sizes, default=0) / near.threshold
        for number, held in enumerate(self._sets):
            if len(held):
                self._lsh.insert(number, self._signature(held))

    def find(self, words: Words) -> list[tuple[int, float]]:
        """(text number, Jaccard index) of each text the document is a near-duplicate of."""
        if len(words) < max(self._near.shingle, self._least):
            return []
        held = shingles(words, self._near.shingle)
        if not self._least <= len(held) <= self._most:
            return []
        found = []
        for number in sorted(self._lsh.query(self._signature(held))):
            shared = len(np.intersect1d(held, self._sets[number], assume_unique=True))
            jaccard = shared / (len(held) + len(self._sets[number]) - shared)
            if jaccard >= self._near.threshold:
                found.append((number, jaccard))
        return found

    def _signature(self, held: NDArray[np.uint64]) -> MinHash:
        signature = self._blank.copy()
        signature.update_batch((held >> np.uint64(32)).tolist())
        return signature
