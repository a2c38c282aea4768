"""One per node: starts its services, carries out drain orders, answers lifecycle hooks and spot notices."""
