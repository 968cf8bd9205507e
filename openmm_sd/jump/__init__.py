"""One jump: propose, constrain, judge."""
