"""`make chaos`: faults thrown at real processes on real engines, and a judge that reads what really ran."""
