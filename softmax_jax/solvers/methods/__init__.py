"""Algorithms of the solvers, one a module."""
