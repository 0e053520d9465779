"""Measures Comity against baselines in the same run, and proves its promises at full size.

`comity bench` is `make bench` (P1, P2: Decide against an empty call and against the naive design);
`python -m bench.prove` is `make prove`. Figures are ratios, medians and spread: absolute times move from
machine to machine.
"""
