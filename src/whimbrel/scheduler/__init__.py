"""Where could this server go? Pure functions over columns of hosts: filters refuse, weighers rank."""
