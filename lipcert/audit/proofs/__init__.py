"""Checking the proofs that ``certify --save-proofs`` writes; ``PROOFS.md`` beside this package has
the format, and the theorem of every step.

Nothing here comes from the bounds, norms or networks that a certificate is made with: the file is
read by the audit's own interpreter, norms are the checker's own with fresh coins, and every number
of a proof is a hint that cannot make a false claim true.
"""
