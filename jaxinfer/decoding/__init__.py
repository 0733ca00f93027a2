"""Decoding: the contract of a method, and apart from it methods, their drafts, sampling and constraints."""
