"""REST API and pages: DAGs, runs, tasks and the fleet, live."""
