"""The duties of a scheduler, one file each: create runs, dispatch, reap, drive rollouts."""
