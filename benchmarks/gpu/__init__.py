"""What is measured on a GPU, with what: random models of published shapes, and who runs them."""
