output "groups" {
  description = "Auto Scaling group of each role."
  value       = { scheduler = module.schedulers.group_name, web = module.web.group_name }
}

output "private_zone" {
  description = "{id, name} of the private zone; null without one."
  value       = var.private_dns ? { id = module.private_dns[0].zone_id, name = "${local.name}.internal" } : null
}

output "web_metric_dimensions" {
  description = "What CloudWatch calls the load balancer and its target group; null without them."
  value       = one(module.load_balancer[*].metric_dimensions)
}

output "web_dns_name" {
  description = "Name to point your own DNS name at; null without a load balancer."
  value       = one(module.load_balancer[*].dns_name)
}
