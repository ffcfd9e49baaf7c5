"""What loads a coordinator: its process, fake nodes and clients, and a floor to compare with."""
