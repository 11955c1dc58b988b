"""models: see DESIGN.md, Rooms."""
