"""Shows what the runs left behind. Imports the records of the other rooms, never torch."""
