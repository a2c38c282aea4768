output "url" {
  description = "URL without the auth token; TLS only."
  value       = "rediss://${aws_elasticache_replication_group.this.primary_endpoint_address}:${aws_elasticache_replication_group.this.port}/0"
}

output "secret_arn" {
  description = "Secret holding the auth token as plain text."
  value       = aws_secretsmanager_secret.token.arn
}
