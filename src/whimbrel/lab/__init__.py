"""Hosts made on one machine, for the demonstration, the tests and trying things."""

from whimbrel.lab.lab import Lab

__all__ = ["Lab"]
