"""The learned agent, HARD-style: views on which the student errs and the teacher does not, sought by gradient.

The paper, arXiv 2305.14890, was read as far as its abstract, and no code of it is public. Objective, gate, bounds and
every default here are a design after a recollection of it: unverified, not the paper's.
"""
