"""How a call is conducted: queued, sent, hedged, retried, answered; and who is tended beside it."""
