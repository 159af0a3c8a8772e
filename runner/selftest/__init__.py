"""Hostile candidates that travel with the package, and what tells whether one of them got through.

`catalogue` reads the attacks and makes candidates of them, `outcome` decides, `agent` proposes them one after the other;
`runner.cli.selftesting` gives them a task of their own and the real stack.
"""
