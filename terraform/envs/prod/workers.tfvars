pools = {
  default = { workers = 3, max_workers = 30, scaling = "sluice", slots = 8, instance_types = ["m7i.xlarge", "m6i.xlarge"], drain_seconds = 14400 }
  cpu     = { workers = 0, max_workers = 20, scale_to_zero = true, scaling = "sluice", slots = 4, queues = ["cpu"], instance_types = ["c7i.4xlarge", "c6i.4xlarge"], drain_seconds = 28800 }
}
