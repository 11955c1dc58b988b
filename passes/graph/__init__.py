"""Reading and writing graphs: nodes, names, weights, shapes, and what weight-free parts compute."""
