output "user_data" {
  description = "cloud-config, as plain text."
  value       = "#cloud-config\n${yamlencode(local.user_data)}"
}
