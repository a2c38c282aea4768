output "vpc_id" {
  description = "The VPC."
  value       = module.network.vpc_id
}

output "cidr" {
  description = "Address range of the VPC."
  value       = var.cidr
}

output "zones" {
  description = "Availability zones, in the order of the subnets."
  value       = module.network.zones
}

output "private_subnet_ids" {
  description = "Subnets for nodes, in zone order."
  value       = module.network.private_subnet_ids
}

output "public_subnet_ids" {
  description = "Subnets for load balancers, in zone order."
  value       = module.network.public_subnet_ids
}

output "data_subnet_ids" {
  description = "Subnets for database and broker, in zone order."
  value       = module.network.data_subnet_ids
}

output "security_group_ids" {
  description = "Security group id by role: load-balancer, web, scheduler, worker, database, broker."
  value       = module.security_groups.ids
}
