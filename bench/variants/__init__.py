"""Services that are wrong or slow on purpose, for baselines and to show that proofs can fail.

Each is a program that takes the real service apart in one place and runs the rest unchanged. Production code
has no switch that leads here.
"""
