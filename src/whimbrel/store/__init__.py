"""The controller's truth: tables, the engine, queries by noun, the outbox. SQLite, or PostgreSQL by setting.

A transaction is a plain synchronous function over a connection, so none is ever held across an await.
"""
