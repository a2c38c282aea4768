output "database_id" {
  description = "Identifier of the database instance."
  value       = module.database.id
}

output "database_address" {
  description = "Host name of the database."
  value       = module.database.address
}

output "broker_members" {
  description = "Names of the broker's nodes."
  value       = module.broker.members
}

output "broker_address" {
  description = "Host name of the broker's primary."
  value       = module.broker.address
}

output "database_url" {
  description = "PostgreSQL without user and password, TLS only."
  value       = module.database.url
}

output "database_secret_arn" {
  description = "Secret holding {username, password} of the database."
  value       = module.database.secret_arn
}

output "broker_url" {
  description = "Valkey without its auth token, TLS only."
  value       = module.broker.url
}

output "broker_secret_arn" {
  description = "Secret holding the broker's auth token as plain text."
  value       = module.broker.secret_arn
}

output "artifacts_url" {
  description = "Where releases/ and bundles/ are kept."
  value       = module.artifacts.url
}

output "storage_url" {
  description = "Where logs/ and files/ are kept."
  value       = module.storage.url
}

output "access_logs_bucket" {
  description = "Bucket for access logs; null where none are kept."
  value       = one(module.access_logs[*].name)
}

output "kms_key_arn" {
  description = "Key that encrypts all of it."
  value       = aws_kms_key.data.arn
}
