"""What a person sees: tables, plots, files; and JSON for machines.  The only place that draws."""
