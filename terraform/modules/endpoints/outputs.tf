output "ids" {
  description = "Endpoint id by service."
  value       = { for service, endpoint in aws_vpc_endpoint.this : service => endpoint.id }
}
