"""Claims tasks from the queue, runs each in a child process, keeps its lease alive, drains."""
