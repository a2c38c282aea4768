"""The database: models, migrations, and the only code that changes the state of a run, a task or a node."""
