"""Rows as the JSON that clients expect; the OpenStack-shaped states are derived here, never stored."""
