"""passes: see DESIGN.md, Rooms."""
