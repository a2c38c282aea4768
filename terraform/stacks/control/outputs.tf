output "groups" {
  description = "Auto Scaling group of each role."
  value       = { scheduler = module.schedulers.group_name, web = module.web.group_name }
}

output "web_dns_name" {
  description = "Name to point your own DNS name at; null without a load balancer."
  value       = one(module.load_balancer[*].dns_name)
}
