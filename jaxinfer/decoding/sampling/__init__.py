"""Sampling: its settings, what they do to a distribution, and the rules by which guesses are accepted."""
