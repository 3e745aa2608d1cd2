"""The process that draws. The only place that needs torch."""
