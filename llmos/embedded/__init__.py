"""The whole system on one machine: one supervisor, two Valkeys, five services."""
