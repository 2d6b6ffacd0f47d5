"""What the examples share: data, networks, objective, training, evaluation, command line."""
