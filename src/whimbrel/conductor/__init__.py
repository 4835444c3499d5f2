"""Decides: takes reports in, asks `migration.decide` what is next, writes journal and outbox in one transaction."""
