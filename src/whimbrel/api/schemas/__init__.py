"""What bodies may look like, as JSON schemas; rows of the table of routes name them."""
