"""Bad input, made by the thousand: no 500, no traceback, nothing changed by what was refused."""
