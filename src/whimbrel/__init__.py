"""Whimbrel moves virtual machines between hosts that share no storage."""
