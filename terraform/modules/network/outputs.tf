output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "zones" {
  description = "The availability zones in use, in the order of the subnets."
  value       = local.zones
}

output "private_subnet_ids" {
  description = "Subnets for nodes, in zone order; their way out is NAT."
  value       = [for zone in local.zones : aws_subnet.private[zone].id]
}

output "public_subnet_ids" {
  description = "Subnets for load balancers, in zone order."
  value       = [for zone in local.zones : aws_subnet.public[zone].id]
}

output "data_subnet_ids" {
  description = "Subnets for database and broker, in zone order; no way out."
  value       = [for zone in local.zones : aws_subnet.data[zone].id]
}
