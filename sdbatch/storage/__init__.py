"""Files, and where they lie: every durable step and every path."""
