"""What is measured on a CPU, with what: random models of Phi-mini's shape, and who runs them."""
