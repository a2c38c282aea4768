pools = {
  default = { workers = 1, max_workers = 4, instance_types = ["t3.large", "t3a.large"] }
}
