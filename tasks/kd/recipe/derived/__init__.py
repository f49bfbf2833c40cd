"""What is worked out from a recipe's sections; stages depend on this folder, not on the models."""
