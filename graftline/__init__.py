"""graftline: grafts parallel decoding onto models that are already exported."""
