"""The nouns: server, host, flavor, image, claim, migration, errors. Frozen data, no I/O, no library."""
