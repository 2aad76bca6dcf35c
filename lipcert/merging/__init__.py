"""Shards made one: certificates of the parts of a run become the certificate of the whole.

``shards`` finds the parts and refuses those that are not of one run, ``columns`` reads the samples
of a part, ``join`` puts everything together. Nothing here needs torch, and no samples are kept.
"""

from lipcert.merging.join import merge

__all__ = ["merge"]
