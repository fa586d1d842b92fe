"""Traffic Policy documents."""
