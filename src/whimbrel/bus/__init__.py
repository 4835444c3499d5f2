"""How the processes talk: one small port, two transports (RabbitMQ, and memory for tests and simulation)."""
