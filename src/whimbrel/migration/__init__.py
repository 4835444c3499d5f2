"""The heart: protocols as tables, the pure decision, the journal, the steps and what they ask of the world.

Read `protocols.py` first. No third-party library and no event loop is known here.
"""
