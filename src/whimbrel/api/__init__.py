"""The HTTP side: OpenStack's APIs as its clients know them, and Whimbrel's own view of a migration."""
