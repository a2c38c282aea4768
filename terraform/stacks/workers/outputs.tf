output "groups" {
  description = "Auto Scaling group of each pool."
  value       = { for name, pool in module.pool : name => pool.group_name }
}
