"""Reading graphs for people: what differs between two, blocks folded, pages and texts."""
