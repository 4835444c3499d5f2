"""What is measured, by whole stories against a running cloud. Raw rows go to `benchmarks/results`."""
