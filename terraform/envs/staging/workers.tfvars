pools = {
  default = { workers = 2, max_workers = 8, slots = 8, instance_types = ["m7i.large", "m6i.large"], drain_seconds = 7200 }
  cpu     = { workers = 0, max_workers = 4, scale_to_zero = true, slots = 4, queues = ["cpu"], instance_types = ["c7i.2xlarge", "c6i.2xlarge"], spot_percent = 100, drain_seconds = 14400 }
}
