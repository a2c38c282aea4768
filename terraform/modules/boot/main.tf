# What a machine does when it boots for the first time: settings into a file, then the release its tag names.

locals {
  user_data = {
    write_files = [
      {
        path    = "/etc/sluice/node.env"
        content = join("", [for key, value in var.settings : "${key}=${value}\n"])
      },
      {
        path        = "/opt/sluice/boot"
        permissions = "0755"
        encoding    = "gz+b64" # all user data together has 16 KiB
        content     = base64gzip(file("${path.module}/boot.py"))
      },
    ]
    runcmd = [["/opt/sluice/boot"]]
  }
}
