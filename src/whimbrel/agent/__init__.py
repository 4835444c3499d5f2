"""What runs on each host: a ledger, an executor of one order at a time, and the guests and disks themselves."""
