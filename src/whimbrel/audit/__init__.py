"""Compares the books with the hosts: what differs, what to do about it, and what can be mended without a doubt."""
