output "members" {
  description = "Names of its nodes, as CloudWatch knows them."
  value       = sort(aws_elasticache_replication_group.this.member_clusters)
}

output "address" {
  description = "Host name of the primary, without port."
  value       = aws_elasticache_replication_group.this.primary_endpoint_address
}

output "url" {
  description = "URL without the auth token; TLS only."
  value       = "rediss://${aws_elasticache_replication_group.this.primary_endpoint_address}:${aws_elasticache_replication_group.this.port}/0"
}

output "secret_arn" {
  description = "Secret holding the auth token as plain text."
  value       = aws_secretsmanager_secret.token.arn
}
