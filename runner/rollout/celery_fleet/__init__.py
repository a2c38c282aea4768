"""Rolling a Celery application that is not ours: told to stop taking tasks, waited for, stopped, updated, started."""
