"""What a pipeline author imports: DAGs, tasks, the running task's context. Imports nothing else of ours."""
