"""Who is in the fleet: what sources say of it, and what of that is believed."""
