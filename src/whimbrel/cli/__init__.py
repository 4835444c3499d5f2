"""The command line: the roles' starters, the operators' commands, and the lab."""
