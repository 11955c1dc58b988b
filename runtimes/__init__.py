"""runtimes: see DESIGN.md, Rooms."""
