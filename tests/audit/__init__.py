"""Audits: the pure comparison, and real processes that are made to drift."""
