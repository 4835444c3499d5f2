"""What every role needs to run at all: settings, logs, clocks and identifiers."""
