"""What computes: `reference` defines every operation, `choice` picks what is fastest here."""
