"""Coding agents of other people, for the tests that run them: which, where they are, and how they are installed."""
