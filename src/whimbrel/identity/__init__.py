"""Who may do what: tokens, passwords, and the policy that both are checked against."""
