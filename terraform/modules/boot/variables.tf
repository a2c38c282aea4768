variable "settings" {
  description = "Environment of the machine's services, written to /etc/sluice/node.env."
  type        = map(string)

  validation {
    condition     = alltrue([for value in values(var.settings) : !can(regex("\n", value))])
    error_message = "settings: a value has a line break; one line each: ${join(", ", [for key, value in var.settings : key if can(regex("\n", value))])}."
  }
}
