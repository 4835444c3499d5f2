"""The disk files of servers on one host, and their way to another host."""
