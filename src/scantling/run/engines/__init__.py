"""Where the stages of a run are done, other than one after the other in this process."""
