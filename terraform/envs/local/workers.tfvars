pools = {
  default = { workers = 2, max_workers = 6, slots = 4, drain_seconds = 120 }
  cpu     = { workers = 1, max_workers = 3, slots = 2, queues = ["cpu"], drain_seconds = 120 }
}
