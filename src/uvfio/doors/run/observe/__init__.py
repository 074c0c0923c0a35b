"""Who is told what happened: trace, summary, status, control socket."""
