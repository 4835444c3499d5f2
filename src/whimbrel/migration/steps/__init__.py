"""What each row of a protocol does, undoes and asks, written against the ports of `migration.ports`."""
