"""plugins: see DESIGN.md, Rooms."""
