"""What the inputs and outputs of an exported graph are."""
