"""Who may be sent calls: what was seen of each replica's failures, silence and speed, and what it says of itself."""
