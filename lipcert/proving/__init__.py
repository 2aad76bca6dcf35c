"""Writing proofs for ``lipcert audit --proofs``: what ``certify --save-proofs`` does at its end.

Slopes, multipliers and splits are sought in the relaxation of ``lipcert.audit.proofs`` itself, the
cheapest sort of proof that will do for each sample, and what is written has been replayed.
"""
